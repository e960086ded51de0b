"""Every protocol by the name that it is asked for."""

import difflib
import importlib
from functools import cache

from comms.errors import UsageError
from kernels.protocol import Protocol

#: Kernels in the order of lists, ours first; each is a module with a tuple `PROTOCOLS`.
_KERNELS = ("direct", "two_hop", "ring", "nccl_like", "mpi")


def kernel_names() -> list[str]:
    """Return the names of all kernels."""
    return list(_KERNELS)


def variants(kernel: str) -> list[str]:
    """Return the variants of a kernel.

    Raises:
        UsageError: there is no such kernel.
    """
    return [protocol.variant for protocol in _protocols(kernel)]


def describe(kernel: str) -> str:
    """Return one line about a kernel."""
    summaries = [f"{protocol.variant}: {protocol.summary}" for protocol in _protocols(kernel)]
    return "; ".join(summaries) + "."


def find_protocol(kernel: str, variant: str) -> Protocol:
    """Return a variant of a kernel.

    Raises:
        UsageError: there is no such kernel or variant.
    """
    for protocol in _protocols(kernel):
        if protocol.variant == variant:
            return protocol
    raise UsageError(
        f"kernel {kernel} has no variant {variant!r}; choose one of {', '.join(variants(kernel))}"
    )


@cache
def _protocols(kernel: str) -> tuple[Protocol, ...]:
    if kernel not in _KERNELS:
        near = difflib.get_close_matches(kernel, _KERNELS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no kernel {kernel!r}; choose one of {', '.join(_KERNELS)}{hint}")
    protocols: tuple[Protocol, ...] = importlib.import_module(f"kernels.{kernel}").PROTOCOLS
    return protocols
