"""A helper of kernels in a file of its own."""

from kernels import isa


def wait_for(flag: int) -> None:
    """Wait for the first value of a flag."""
    isa.wait_ge(flag, 1)
