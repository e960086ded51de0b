"""Baselines whose exchange the host asks a library for, whichever library the device has."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from comms.collectives import Wanted
from kernels.packing import Library, Variant, baseline, exchange
from kernels.protocol import HostCall, HostLaunch, Protocol
from kernels.shape import Shape

Call = Callable[[HostCall], None]


def _library(variant: Variant, *, queues: bool, adds_back: bool) -> Library:
    """Return the calls of a variant.

    Where they are queued, the host reads the counts while rows are packed, else after that.
    """
    waits = not queues
    if variant == "allgather":
        there = HostLaunch("allgather", exchange.gather, waits)
        if not adds_back:
            return Library(there, HostLaunch("alltoall_back", exchange.equal_rows_back, waits))
        back = HostLaunch("reduce_scatter", exchange.sum_back, waits)
        return Library(there, back, clear=HostLaunch("clear", exchange.clear_back, waits))
    if variant == "padded":
        there = HostLaunch("alltoall", exchange.equal_rows, waits)
        back = HostLaunch("alltoall_back", exchange.equal_rows_back, waits)
        counts, sizes = exchange.counts_of_all, exchange.equal_sizes
    else:
        there = HostLaunch("alltoallv", exchange.rows, waits)
        back = HostLaunch("alltoallv_back", exchange.rows_back, waits)
        counts, sizes = exchange.counts, exchange.sizes
    if not queues:
        return Library(there, back, HostLaunch("counts", partial(_both, counts, sizes)))
    told = HostLaunch("counts", counts, waits=False)
    return Library(there, back, told, HostLaunch("sizes", sizes))


def _both(counts: Call, sizes: Call, host: HostCall) -> None:
    """Tell the counts and wait for them."""
    counts(host)
    sizes(host)


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
