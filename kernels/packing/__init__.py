"""What a framework runs around a library's exchange: count, pack, unpack, reduce.

Columns are what rows are sorted by before an all-to-all: destination ranks, or experts where a row
stands for one selection.
"""

from dataclasses import dataclass
from functools import partial

from kernels.packing.gathered import PrepareParams, SelectParams, find, prepare, select
from kernels.packing.layout import LayoutParams, PackParams, TotalsParams, layout, pack, totals
from kernels.packing.padded import CompactParams, SpreadParams, compact, spread
from kernels.packing.sizes import (
    MAX_SMS,
    PACK_WARPS,
    Variant,
    column_bytes,
    num_columns,
    regions,
    settings,
    split_rows,
)
from kernels.packing.unpack import ReduceParams, UnpackParams, pack_back, reduce, unpack
from kernels.protocol import Form, HostLaunch, KernelLaunch, Op, Protocol, Splits, accepts_all
from kernels.shape import Shape

__all__ = [
    "MAX_SMS",
    "PACK_WARPS",
    "Library",
    "Variant",
    "baseline",
    "column_bytes",
    "num_columns",
    "regions",
    "settings",
]

#: Most bytes of the buffers of all ranks that hold every token of the world, of which there are
#: three: a world of the simulator, or the ranks of a host, have one memory.
MOST_GATHERED_BYTES = 8 * 10**9

_LAYOUT = KernelLaunch("layout", layout, LayoutParams, PACK_WARPS, "all")
_TOTALS = KernelLaunch("totals", totals, TotalsParams, PACK_WARPS, "all")
_PACK = KernelLaunch("pack", pack, PackParams, PACK_WARPS, "all")
_UNPACK = KernelLaunch("unpack", unpack, UnpackParams, PACK_WARPS, "all")
_PACK_BACK = KernelLaunch("pack_back", pack_back, UnpackParams, PACK_WARPS, "all")
_COMPACT = KernelLaunch("compact", compact, CompactParams, PACK_WARPS, "all")
_SPREAD = KernelLaunch("spread", spread, SpreadParams, PACK_WARPS, "all")
_PREPARE = KernelLaunch("prepare", prepare, PrepareParams, PACK_WARPS, "all")
_FIND = KernelLaunch("find", find, SelectParams, PACK_WARPS, "all")
_SELECT = KernelLaunch("select", select, SelectParams, PACK_WARPS, "all")
_REDUCE = KernelLaunch("reduce", reduce, ReduceParams, PACK_WARPS, "all")

Launch = KernelLaunch | HostLaunch


@dataclass(frozen=True, slots=True)
class Library:
    """A library's part of a variant.

    Attributes:
        exchange: takes rows, ids and weights to other ranks.
        exchange_back: takes rows back.
        counts: tells every rank what it will get; none where nothing is counted.
        sizes: waits for the counts; where it is given, counts are told before rows are packed, and
            waited for as late as can be.
        clear: zeroes what goes back, for an `exchange_back` that adds rows itself; none where
            they are added here.
    """

    exchange: Launch
    exchange_back: Launch
    counts: Launch | None = None
    sizes: Launch | None = None
    clear: Launch | None = None


def baseline(kernel: str, variant: Variant, summary: str, library: Library) -> Protocol:
    """Return a variant of the baseline that stands for a library, with the memory of its kernels.

    Args:
        kernel: name of the baseline.
        variant: how rows are grouped for the exchange.
        summary: one line.
        library: the library's part.
    """
    splits: dict[str, Splits] = {"padded": "padded", "allgather": "gathered"}
    return Protocol(
        kernel=kernel,
        variant=variant,
        summary=summary,
        regions=partial(regions, variant=variant),
        launches=partial(_launches, variant=variant, library=library),
        refuses=_refuses if variant == "allgather" else accepts_all,
        settings=partial(settings, variant=variant),
        granularity="selection" if variant == "selection" else "rank",
        splits=splits.get(variant, "exact"),
        is_baseline=True,
    )


def _launches(op: Op, form: Form, variant: Variant, library: Library) -> tuple[Launch, ...]:
    """Return the launches of an operation, the library's among them."""
    counts = (library.counts,) if library.counts else ()
    sizes = (library.sizes,) if library.sizes else ()
    if op == "combine":
        before = {"dedup": (), "selection": (_PACK_BACK,)}.get(variant, (_SPREAD,))
        if library.clear:
            return (library.clear, *before, library.exchange_back)
        return (*before, library.exchange_back, _REDUCE)
    if variant == "allgather":
        if form == "cached":
            return (library.exchange, _SELECT)
        return (_PREPARE, library.exchange, _FIND, _SELECT)
    after = {"selection": (_UNPACK,), "padded": (_COMPACT,)}.get(variant, ())
    if form == "cached":
        return (_PACK, library.exchange, *after)
    if variant == "padded":
        return (_LAYOUT, _TOTALS, *counts, *sizes, _PACK, library.exchange, *after)
    if sizes:
        return (_LAYOUT, _TOTALS, *counts, _PACK, *sizes, library.exchange, *after)
    return (_LAYOUT, _PACK, *counts, library.exchange, *after)


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    """Refuse an all-gather whose buffers would not fit where all ranks share a memory."""
    x_bytes, y_bytes = shape.dispatch_row.stride_bytes, shape.combine_row.stride_bytes
    row_bytes = x_bytes + 2 * y_bytes + 8 * shape.num_topk
    num_bytes = shape.world_size * split_rows(shape) * row_bytes
    if num_bytes <= MOST_GATHERED_BYTES:
        return None
    return (
        f"all-gather of {shape.num_tokens} tokens to {shape.world_size} ranks takes "
        f"{num_bytes / 1e9:.1f} GB for every token on every rank, more than the "
        f"{MOST_GATHERED_BYTES / 1e9:.0f} GB that a simulated world or a host is given: use fewer "
        "tokens or ranks, or move a shorter prefix of each row"
    )
