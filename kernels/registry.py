"""Every protocol by the name that it is asked for."""

import difflib
import importlib
from functools import cache

from comms.errors import UsageError
from kernels.from_file import KernelFile
from kernels.protocol import Impl, Protocol

#: Kernels in the order of lists, ours first; each is a module with a tuple `PROTOCOLS`.
_KERNELS = (
    "direct",
    "two_hop",
    "ring",
    "ring_two_hop",
    "low_latency",
    "nccl_like",
    "nccl",
    "mpi",
)


def kernel_names() -> list[str]:
    """Return the names of all kernels."""
    return list(_KERNELS)


def variants(kernel: str) -> list[str]:
    """Return the variants of a kernel.

    Raises:
        UsageError: there is no such kernel.
    """
    return list(dict.fromkeys(protocol.variant for protocol in _protocols(kernel)))


def impls(kernel: str, variant: str) -> list[Impl]:
    """Return what a variant of a kernel is made of, each way that there is.

    Raises:
        UsageError: there is no such kernel.
    """
    return [protocol.impl for protocol in _protocols(kernel) if protocol.variant == variant]


def describe(kernel: str) -> str:
    """Return one line about a kernel."""
    protocols = _protocols(kernel)
    summaries = [f"{each.variant}: {each.summary}" for each in protocols if each.impl != "cupy"]
    return "; ".join(summaries) + "."


def find_protocol(
    kernel: str, variant: str, source: KernelFile | None = None, impl: Impl = "numba"
) -> Protocol:
    """Return a variant of a kernel.

    Args:
        kernel: its name.
        variant: the variant's.
        source: the file that it is from, None for a built-in one.
        impl: `"cupy"` for the one in CUDA C++, else the one that is not.

    Raises:
        UsageError: there is no such kernel or variant, or not in CUDA C++.
    """
    everything = source.protocols if source else _protocols(kernel)
    known = [each for each in everything if source or (each.impl == "cupy") == (impl == "cupy")]
    for protocol in known:
        if protocol.variant == variant:
            return protocol
    if any(each.variant == variant for each in everything):
        raise UsageError(f"{kernel}/{variant} is not written in CUDA C++: leave out --impl cupy")
    names = ", ".join(protocol.variant for protocol in known)
    raise UsageError(f"kernel {kernel} has no variant {variant!r}; choose one of {names}")


@cache
def _protocols(kernel: str) -> tuple[Protocol, ...]:
    if kernel not in _KERNELS:
        near = difflib.get_close_matches(kernel, _KERNELS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no kernel {kernel!r}; choose one of {', '.join(_KERNELS)}{hint}")
    protocols: tuple[Protocol, ...] = importlib.import_module(f"kernels.{kernel}").PROTOCOLS
    return protocols
