"""The instruction set on GPUs: the names of what `cuh/exports.cuh` defines, for numba-cuda.

Every lane of a warp calls them together. Rows to other virtual nodes are written by the warp
itself, as on `cpu`, so a put has completed when the instruction returns.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import cuda

from kernels.isa import (
    MOST_SEGMENTS,
    ExpertLists,
    Matrix,
    Part,
    RowList,
    Selected,
    Target,
    TopkRow,
)

# Names that kernels use and that mean the same everywhere.
__all__ = [
    "MOST_SEGMENTS",
    "ExpertLists",
    "Matrix",
    "Part",
    "RowList",
    "Selected",
    "Target",
    "TopkRow",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Most selections of a token, and rows of a sum: a lane each.
MOST_TOPK = 32

#: Binding writes loops over ranges as loops on a comparison.
PLAIN_LOOPS = True


def _external(name: str, num_arguments: int, result: str = "void") -> Any:
    arguments = ", ".join(["int64"] * num_arguments)
    return cuda.declare_device(f"ep_{name}", f"{result}({arguments})", abi="c")


def _inlined(function: F) -> F:
    inlined: F = cuda.jit(device=True, forceinline=True)(function)
    return inlined


sm_id = _external("sm_id", 0, "int64")
warp_id = _external("warp_id", 0, "int64")
load = _external("load", 1, "int64")
load_acquire = _external("load_acquire", 1, "int64")
store = _external("store", 3)
store_release = _external("store_release", 3)
add = _external("add", 3)
fetch_add = _external("fetch_add", 3, "int64")
fence_release = _external("fence_release", 0)
wait_ge = _external("wait_ge", 3, "int64")
wait_any = _external("wait_any", 6, "int64")
wait_all = _external("wait_all", 5)
min_words = _external("min_words", 3, "int64")
warp_sync = _external("warp_sync", 0)
group_sync = _external("group_sync", 3)
copy_row = _external("copy_row", 4)
copy_row_bulk = _external("copy_row_bulk", 4)
copy_bytes = _external("copy_bytes", 4)
scan_counts = _external("scan", 4)
pause = _external("pause", 1)
load_i32 = _external("load_i32", 1, "int64")
store_i32 = _external("store_i32", 2)
load_i64 = _external("load_i64", 1, "int64")
store_i64 = _external("store_i64", 2)
# Division of int64 as Python has it; binding calls these for `//` and `%`.
floor_div = _external("floor_div", 2, "int64")
modulo = _external("modulo", 2, "int64")

_address = _external("address", 2, "int64")
_own_address = _external("own_address", 1, "int64")
_block_sync = _external("block_sync", 0)
_count_experts = _external("count_experts", 6)
_count_ranks = _external("count_ranks", 6)
_localize = _external("localize", 7)
_put_rows = _external("put_rows", 6)
_put_signal = _external("put_signal", 3)
_rank_mask = _external("rank_mask", 5, "int64")
_reduce = _external("reduce", 6)
_reduce_weighted = _external("reduce_weighted", 9)
_route = _external("route", 6, "int64")
_route_experts = _external("route_experts", 7, "int64")
_select_rank = _external("select_rank", 8, "int64")
_sum_rows = _external("sum_rows", 6)


@_inlined
def block_sync(line: int) -> None:
    _block_sync()


@_inlined
def copy_topk(rank: int, idx_offset: int, weights_offset: int, topk: TopkRow) -> None:
    localize_topk(rank, _address(rank, idx_offset), _address(rank, weights_offset), topk)


@_inlined
def localize_topk(rank: int, idx_addr: int, weights_addr: int, topk: TopkRow) -> None:
    _localize(
        rank,
        idx_addr,
        weights_addr,
        topk.idx_addr,
        topk.weights_addr,
        topk.num_topk,
        topk.experts_per_rank,
    )


@_inlined
def reduce_rows(out_addr: int, rows: RowList) -> None:
    _reduce(out_addr, rows.num_rows, rows.ranks_addr, rows.rows_addr, rows.base, rows.row_bytes)


@_inlined
def reduce_columns_weighted(out_addr: int, rows: RowList, weights_addr: int, part: Part) -> None:
    _reduce_weighted(
        out_addr,
        rows.num_rows,
        rows.ranks_addr,
        rows.rows_addr,
        rows.base,
        rows.row_bytes,
        weights_addr,
        part.number,
        part.num_parts,
    )


@_inlined
def reduce_rows_weighted(out_addr: int, rows: RowList, weights_addr: int) -> None:
    reduce_columns_weighted(out_addr, rows, weights_addr, Part(0, 1))


@_inlined
def put_row(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    copy_row(rank, offset, src_addr, num_bytes)


@_inlined
def put_rows(rank: int, offset: int, rows: RowList, channel: int) -> None:
    _put_rows(rank, offset, rows.num_rows, rows.rows_addr, rows.base, rows.row_bytes)


@_inlined
def put_bytes(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    copy_bytes(rank, offset, src_addr, num_bytes)


@_inlined
def put_signal(rank: int, offset: int, value: int, channel: int) -> None:
    _put_signal(rank, offset, value)


@_inlined
def put_wait(channel: int) -> None:
    pass


@_inlined
def put_row_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    copy_row(target.rank, target.offset, _address(via, src_offset), num_bytes)


@_inlined
def put_bytes_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    copy_bytes(target.rank, target.offset, _address(via, src_offset), num_bytes)


@_inlined
def put_signal_via(via: int, target: Target, value: int, channel: int) -> None:
    _put_signal(target.rank, target.offset, value)


@_inlined
def count_ranks(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    _count_ranks(
        topk.idx_addr,
        topk.num_topk,
        topk.experts_per_rank,
        topk.world_size,
        num_tokens,
        counts_addr,
    )


@_inlined
def count_experts(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    _count_experts(
        topk.idx_addr,
        topk.num_topk,
        topk.experts_per_rank,
        topk.world_size,
        num_tokens,
        counts_addr,
    )


@_inlined
def rank_mask(topk: TopkRow, first_rank: int, num_ranks: int) -> int:
    return _rank_mask(topk.idx_addr, topk.num_topk, topk.experts_per_rank, first_rank, num_ranks)


@_inlined
def select_rank(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
    return _select_rank(
        topk.idx_addr,
        topk.weights_addr,
        topk.num_topk,
        topk.experts_per_rank,
        num_tokens,
        rank,
        selected.entries_addr,
        selected.counts_addr,
    )


@_inlined
def sum_rows(matrix: Matrix, num_rows: int, initial_addr: int, sums_addr: int) -> None:
    _sum_rows(matrix.addr, matrix.num_columns, matrix.row_bytes, num_rows, initial_addr, sums_addr)


@_inlined
def route(topk: TopkRow, cursor_addr: int, ranks_addr: int, rows_addr: int) -> int:
    return _route(
        topk.idx_addr, topk.num_topk, topk.experts_per_rank, cursor_addr, ranks_addr, rows_addr
    )


@_inlined
def route_experts(topk: TopkRow, cursor_addr: int, lists: ExpertLists) -> int:
    return _route_experts(
        topk.idx_addr,
        topk.weights_addr,
        topk.num_topk,
        cursor_addr,
        lists.experts_addr,
        lists.rows_addr,
        lists.weights_addr,
    )


@_inlined
def scan(counts_addr: int, num_counts: int, begins_addr: int) -> None:
    scan_counts(counts_addr, 4, num_counts, begins_addr)


@_inlined
def scan_words(offset: int, num_words: int, begins_addr: int) -> None:
    scan_counts(_own_address(offset), 8, num_words, begins_addr)


@_inlined
def mark(stage: int) -> None:
    pass
