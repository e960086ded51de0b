"""The instruction set in real memory: each instruction runs on its warp's fiber.

Rows to other virtual nodes are written at once by the warp itself, so a put has completed when the
instruction returns. What a signal or a release covers is ordered by the fence before it.
"""

from comms import atomics
from comms.compiling import inner
from comms.cpu import warps
from comms.cpu.state import (
    BAD_RANK,
    EXCEPTION,
    NOT_REACHABLE,
    OUT_OF_BOUNDS,
    TOO_MANY_ROWS,
    base_of,
    block_at,
    machine,
    region_end,
    warp_at,
)
from comms.fiber import this_engine, this_warp
from comms.raw import move, word_at
from kernels.isa import (
    MOST_SEGMENTS,
    ExpertLists,
    Matrix,
    Part,
    RowList,
    Selected,
    Target,
    TopkRow,
    lanes,
)
from kernels.isa.vectors import copy_stream, reduce_stream

# Names that kernels use and that mean the same everywhere.
__all__ = ["ExpertLists", "Matrix", "Part", "RowList", "Selected", "Target", "TopkRow"]


@inner
def _at(rank: int, offset: int, num_bytes: int) -> int:
    """Return the address of bytes in one region of a rank; ends the program elsewhere."""
    m = this_engine()
    if rank < 0 or rank >= machine(m).world_size:
        warps.fail(m, this_warp(), BAD_RANK, rank, offset)
    end = region_end(m, offset)
    if end < 0:
        warps.fail(m, this_warp(), OUT_OF_BOUNDS, rank, offset)
    if num_bytes < 0 or offset + num_bytes > end:
        warps.fail(m, this_warp(), OUT_OF_BOUNDS, rank, offset + num_bytes)
    return base_of(m, rank) + offset


@inner
def _is_near(rank: int) -> bool:
    """Return whether a rank is on the own node."""
    h = machine(this_engine())
    return rank // h.ranks_per_node == h.rank // h.ranks_per_node


@inner
def _near(rank: int, offset: int, num_bytes: int) -> int:
    """Return an address on the own node, which is as far as loads and stores reach."""
    address = _at(rank, offset, num_bytes)
    if not _is_near(rank):
        warps.fail(this_engine(), this_warp(), NOT_REACHABLE, rank, offset)
    return address


@inner
def _far(rank: int, offset: int, num_bytes: int) -> int:
    """Return an address on another node, which puts reach."""
    address = _at(rank, offset, num_bytes)
    if _is_near(rank):
        warps.fail(this_engine(), this_warp(), NOT_REACHABLE, rank, offset)
    return address


@inner
def _own(offset: int, num_bytes: int) -> int:
    return _at(machine(this_engine()).rank, offset, num_bytes)


@inner
def _scratch() -> int:
    """Return the address of the block's scratch memory, which no wait outlives."""
    m = this_engine()
    h = machine(m)
    return h.scratch + warp_at(m, this_warp()).block * h.scratch_bytes


@inner
def sm_id() -> int:
    m = this_engine()
    return block_at(m, warp_at(m, this_warp()).block).sm


@inner
def warp_id() -> int:
    return warp_at(this_engine(), this_warp()).index


@inner
def load(offset: int) -> int:
    return atomics.load_relaxed(_own(offset, 8))


@inner
def load_acquire(offset: int) -> int:
    _own(offset, 8)
    return warps.load_acquire(this_engine(), this_warp(), offset)


@inner
def store(rank: int, offset: int, value: int) -> None:
    atomics.store_relaxed(_near(rank, offset, 8), value)


@inner
def store_release(rank: int, offset: int, value: int) -> None:
    atomics.fence_release()
    atomics.store_release(_near(rank, offset, 8), value)


@inner
def add(rank: int, offset: int, value: int) -> None:
    atomics.add_relaxed(_near(rank, offset, 8), value)


@inner
def fetch_add(rank: int, offset: int, value: int) -> int:
    return atomics.add_relaxed(_near(rank, offset, 8), value)


@inner
def fence_release() -> None:
    atomics.fence_release()


@inner
def wait_ge(offset: int, value: int, line: int) -> int:
    _own(offset, 8)
    return warps.wait_ge(this_engine(), this_warp(), offset, value, line)


@inner
def wait_any(offset: int, stride: int, values_addr: int, count: int, first: int, line: int) -> int:
    _own(offset, (count - 1) * stride + 8)
    return warps.wait_any(
        this_engine(), this_warp(), offset, stride, values_addr, count, first, line
    )


@inner
def wait_all(offset: int, stride: int, count: int, value: int, line: int) -> None:
    for index in range(count):
        _own(offset + index * stride, 8)
        warps.wait_ge(this_engine(), this_warp(), offset + index * stride, value, line)


@inner
def min_words(offset: int, stride: int, count: int) -> int:
    _own(offset, (count - 1) * stride + 8)
    return warps.min_words(this_engine(), this_warp(), offset, stride, count)


@inner
def warp_sync() -> None:
    pass


@inner
def block_sync(line: int) -> None:
    warps.block_sync(this_engine(), this_warp(), line)


@inner
def group_sync(group: int, num_warps: int, line: int) -> None:
    warps.group_sync(this_engine(), this_warp(), group, num_warps, line)


@inner
def copy_row(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    copy_stream(_near(rank, offset, num_bytes), src_addr, num_bytes)


@inner
def copy_row_bulk(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    copy_stream(_near(rank, offset, num_bytes), src_addr, num_bytes)


@inner
def copy_bytes(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    move(_near(rank, offset, num_bytes), src_addr, num_bytes)


@inner
def copy_topk(rank: int, idx_offset: int, weights_offset: int, topk: TopkRow) -> None:
    num_bytes = 4 * topk.num_topk
    idx_addr = _near(rank, idx_offset, num_bytes)
    lanes.localize(rank, idx_addr, _near(rank, weights_offset, num_bytes), topk)


@inner
def localize_topk(rank: int, idx_addr: int, weights_addr: int, topk: TopkRow) -> None:
    lanes.localize(rank, idx_addr, weights_addr, topk)


@inner
def _reduce(out_addr: int, rows: RowList, weights_addr: int, part: Part) -> None:
    own = machine(this_engine()).rank
    begin = lanes.part_begin(rows.row_bytes, part.number, part.num_parts)
    end = lanes.part_begin(rows.row_bytes, part.number + 1, part.num_parts)
    scratch = _scratch()
    indices = lanes.i32_at(rows.rows_addr, rows.num_rows)
    ranks = lanes.i32_at(rows.ranks_addr, rows.num_rows)
    for index in range(rows.num_rows):
        rank = own if rows.ranks_addr == 0 else ranks[index]
        offset = rows.base + indices[index] * rows.row_bytes
        word_at(scratch + 8 * index)[0] = _near(rank, offset, rows.row_bytes) + begin
    out = _own(out_addr - base_of(this_engine(), own), rows.row_bytes) + begin
    reduce_stream(out, scratch, rows.num_rows, weights_addr, end - begin)


@inner
def reduce_rows(out_addr: int, rows: RowList) -> None:
    _reduce(out_addr, rows, 0, Part(0, 1))


@inner
def reduce_rows_weighted(out_addr: int, rows: RowList, weights_addr: int) -> None:
    _reduce(out_addr, rows, weights_addr, Part(0, 1))


@inner
def reduce_columns_weighted(out_addr: int, rows: RowList, weights_addr: int, part: Part) -> None:
    _reduce(out_addr, rows, weights_addr, part)


@inner
def put_row(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    copy_stream(_far(rank, offset, num_bytes), src_addr, num_bytes)


@inner
def put_rows(rank: int, offset: int, rows: RowList, channel: int) -> None:
    if rows.num_rows > MOST_SEGMENTS:
        warps.fail(this_engine(), this_warp(), TOO_MANY_ROWS, rows.num_rows, MOST_SEGMENTS)
    indices = lanes.i32_at(rows.rows_addr, rows.num_rows)
    for index in range(rows.num_rows):
        source = _own(rows.base + indices[index] * rows.row_bytes, rows.row_bytes)
        address = _far(rank, offset + index * rows.row_bytes, rows.row_bytes)
        copy_stream(address, source, rows.row_bytes)


@inner
def put_bytes(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    move(_far(rank, offset, num_bytes), src_addr, num_bytes)


@inner
def put_signal(rank: int, offset: int, value: int, channel: int) -> None:
    address = _far(rank, offset, 8)
    atomics.fence_release()
    atomics.add_relaxed(address, value)


@inner
def count_ranks(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    lanes.count_ranks(topk, num_tokens, counts_addr, _scratch())


@inner
def rank_mask(topk: TopkRow, first_rank: int, num_ranks: int) -> int:
    return lanes.rank_mask(topk, first_rank, num_ranks)


@inner
def select_rank(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
    return lanes.select_rank(topk, num_tokens, rank, selected)


@inner
def count_experts(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    lanes.count_experts(topk, num_tokens, counts_addr)


@inner
def sum_rows(matrix: Matrix, num_rows: int, initial_addr: int, sums_addr: int) -> None:
    lanes.sum_rows(matrix, num_rows, initial_addr, sums_addr)


@inner
def route(topk: TopkRow, cursor_addr: int, ranks_addr: int, rows_addr: int) -> int:
    return lanes.route(topk, cursor_addr, ranks_addr, rows_addr)


@inner
def route_experts(topk: TopkRow, cursor_addr: int, lists: ExpertLists) -> int:
    return lanes.route_experts(topk, cursor_addr, lists)


@inner
def scan(counts_addr: int, num_counts: int, begins_addr: int) -> None:
    lanes.scan(counts_addr, num_counts, begins_addr)


@inner
def scan_words(offset: int, num_words: int, begins_addr: int) -> None:
    lanes.scan_words(_own(offset, 8 * num_words), num_words, begins_addr)


@inner
def pause(nanoseconds: int) -> None:
    warps.pause(this_engine(), this_warp(), nanoseconds)


@inner
def put_wait(channel: int) -> None:
    pass


@inner
def put_row_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    source = _near(via, src_offset, num_bytes)
    copy_stream(_far(target.rank, target.offset, num_bytes), source, num_bytes)


@inner
def put_bytes_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    source = _near(via, src_offset, num_bytes)
    move(_far(target.rank, target.offset, num_bytes), source, num_bytes)


@inner
def put_signal_via(via: int, target: Target, value: int, channel: int) -> None:
    put_signal(target.rank, target.offset, value, channel)


@inner
def load_i32(addr: int) -> int:
    return lanes.i32_at(addr, 1)[0]


@inner
def store_i32(addr: int, value: int) -> None:
    lanes.i32_at(addr, 1)[0] = value


@inner
def load_i64(addr: int) -> int:
    return word_at(addr)[0]


@inner
def store_i64(addr: int, value: int) -> None:
    word_at(addr)[0] = value


@inner
def mark(stage: int) -> None:
    pass


@inner
def raised() -> None:
    """End the program because the kernel raised an exception."""
    warps.fail(this_engine(), this_warp(), EXCEPTION, 0, 0)


@inner
def finish() -> None:
    """End this warp."""
    warps.finish(this_engine(), this_warp())
