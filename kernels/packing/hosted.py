"""Baselines whose exchange the host asks a library for, whichever library the device has."""

from collections.abc import Callable
from dataclasses import replace

from comms.collectives import Wanted
from kernels.packing import Library, Variant, baseline, exchange
from kernels.protocol import HostLaunch, Protocol
from kernels.shape import Shape


def _library(variant: Variant, *, queues: bool, adds_back: bool) -> Library:
    """Return the calls of a variant; only where they are queued need nothing wait for them."""
    waits = not queues
    if variant == "allgather":
        there = HostLaunch("allgather", exchange.gather, waits)
        if not adds_back:
            return Library(there, HostLaunch("alltoall_back", exchange.equal_rows_back, waits))
        back = HostLaunch("reduce_scatter", exchange.sum_back, waits)
        return Library(there, back, clear=HostLaunch("clear", exchange.clear_back, waits))
    if variant == "padded":
        return Library(
            HostLaunch("alltoall", exchange.equal_rows, waits),
            HostLaunch("alltoall_back", exchange.equal_rows_back, waits),
            HostLaunch("counts", exchange.counts_of_all),
        )
    return Library(
        HostLaunch("alltoallv", exchange.rows, waits),
        HostLaunch("alltoallv_back", exchange.rows_back, waits),
        HostLaunch("counts", exchange.counts),
    )


def hosted(
    kernel: str,
    variant: Variant,
    summary: str,
    *,
    devices: tuple[str, ...],
    library: Callable[[Shape], Wanted],
    queues: bool,
    adds_back: bool = False,
) -> Protocol:
    """Return a variant of a baseline that a library carries.

    Args:
        kernel: name of the baseline.
        variant: how rows are grouped for the exchange.
        summary: one line.
        devices: where the library is.
        library: what is asked of it.
        queues: whether the library queues its work behind the kernels', as NCCL does, and MPI not.
        adds_back: whether the library adds the rows that `allgather` takes back.
    """
    assert variant == "allgather" or not adds_back, variant
    part = _library(variant, queues=queues, adds_back=adds_back)
    protocol = baseline(kernel, variant, summary, part)

    def regions(shape: Shape) -> dict[str, int]:
        return {**protocol.regions(shape), "all_counts": 4 * shape.world_size**2}

    return replace(
        protocol,
        regions=regions if variant == "padded" else protocol.regions,
        devices=devices,
        impl="library",
        library=library,
    )
