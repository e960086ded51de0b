"""The instruction set in virtual time: each instruction runs on its warp's fiber."""

import numpy as np
from numba import carray

from comms.compiling import inner
from comms.fiber import this_engine, this_warp
from comms.raw import as_pointer, word_at
from comms.sim import transfers, warps
from comms.sim.ports import give_transfer, take_slot
from comms.sim.record import REDUCE_PIPE, Passage, record_pass
from comms.sim.state import (
    ADD,
    EXCEPTION,
    HBM,
    ROW,
    STORE,
    TOO_MANY_ROWS,
    TOPK,
    block_at,
    cost,
    header,
    rank_at,
    transfer_at,
    warp_at,
    wire_bytes,
)
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

# Names that kernels use and that mean the same everywhere.
__all__ = ["ExpertLists", "Matrix", "Part", "RowList", "Selected", "Target", "TopkRow"]


@inner
def this_rank() -> int:
    return warp_at(this_engine(), this_warp()).rank


@inner
def sm_id() -> int:
    e = this_engine()
    return block_at(e, warp_at(e, this_warp()).block).sm


@inner
def warp_id() -> int:
    return warp_at(this_engine(), this_warp()).index


@inner
def load(offset: int) -> int:
    return transfers.load(this_engine(), this_warp(), offset)


@inner
def load_acquire(offset: int) -> int:
    return transfers.load_acquire(this_engine(), this_warp(), offset)


@inner
def store(rank: int, offset: int, value: int) -> None:
    transfers.write_word(this_engine(), this_warp(), rank, offset, value, STORE)


@inner
def store_release(rank: int, offset: int, value: int) -> None:
    warps.fence(this_engine(), this_warp())
    transfers.write_word(this_engine(), this_warp(), rank, offset, value, STORE)


@inner
def add(rank: int, offset: int, value: int) -> None:
    transfers.write_word(this_engine(), this_warp(), rank, offset, value, ADD)


@inner
def fetch_add(rank: int, offset: int, value: int) -> int:
    return transfers.fetch_add(this_engine(), this_warp(), rank, offset, value)


@inner
def fence_release() -> None:
    warps.fence(this_engine(), this_warp())


@inner
def wait_ge(offset: int, value: int, line: int) -> int:
    e, warp = this_engine(), this_warp()
    transfers.check_window(e, warp, warp_at(e, warp).rank, offset, 8)
    return warps.wait_ge(e, warp, offset, value, line)


@inner
def wait_any(offset: int, stride: int, values_addr: int, count: int, first: int, line: int) -> int:
    e, warp = this_engine(), this_warp()
    transfers.check_window(e, warp, warp_at(e, warp).rank, offset, (count - 1) * stride + 8)
    return warps.wait_any(e, warp, offset, stride, values_addr, count, first, line)


@inner
def wait_all(offset: int, stride: int, count: int, value: int, line: int) -> None:
    e, warp = this_engine(), this_warp()
    if count > 0:
        transfers.check_window(e, warp, warp_at(e, warp).rank, offset, (count - 1) * stride + 8)
    warps.wait_all(e, warp, offset, stride, count, value, line)


@inner
def min_words(offset: int, stride: int, count: int) -> int:
    return transfers.min_words(this_engine(), this_warp(), offset, stride, count)


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
    e = this_engine()
    transfers.copy(
        e, this_warp(), rank, offset, src_addr, num_bytes, wire_bytes(e, this_rank(), num_bytes), 0
    )


@inner
def copy_row_bulk(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    e = this_engine()
    transfers.copy(
        e, this_warp(), rank, offset, src_addr, num_bytes, wire_bytes(e, this_rank(), num_bytes), 1
    )


@inner
def copy_bytes(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    transfers.copy(this_engine(), this_warp(), rank, offset, src_addr, num_bytes, num_bytes, 0)


@inner
def copy_topk(rank: int, idx_offset: int, weights_offset: int, topk: TopkRow) -> None:
    e, warp = this_engine(), this_warp()
    num_bytes = 4 * topk.num_topk
    transfers.check_slot(e, warp, 2 * num_bytes)
    transfers.check_window(e, warp, rank, weights_offset, num_bytes)
    port = transfers.port_to(e, warp, rank)
    transfer = transfers.new_transfer(e, warp, TOPK, rank, idx_offset, num_bytes)
    t = transfer_at(e, transfer)
    t.num_bytes = 2 * num_bytes
    t.bytes = 2 * t.num_bytes if port == HBM else t.num_bytes
    t.offset2 = weights_offset
    take_slot(e, transfer)
    lanes.localize(rank, t.slot, t.slot + num_bytes, topk)
    warps.settle(e, warp)
    warps.owe(e, warp, header(e).word_issue)
    transfers.issue(e, warp, transfer, port)


@inner
def localize_topk(rank: int, idx_addr: int, weights_addr: int, topk: TopkRow) -> None:
    e = this_engine()
    lanes.localize(rank, idx_addr, weights_addr, topk)
    warps.owe(e, this_warp(), 2 * header(e).word_issue)


@inner
def _reduce(out_addr: int, rows: RowList, weights_addr: int, part: Part) -> None:
    e, warp = this_engine(), this_warp()
    h, w = header(e), warp_at(e, warp)
    own = w.rank
    num_rows, row_bytes = rows.num_rows, rows.row_bytes
    transfers.check_slot(e, warp, row_bytes)
    first_byte = lanes.part_begin(row_bytes, part.number, part.num_parts)
    num_bytes = lanes.part_begin(row_bytes, part.number + 1, part.num_parts) - first_byte
    wire = wire_bytes(e, own, row_bytes)
    wire = wire * (part.number + 1) // part.num_parts - wire * part.number // part.num_parts
    warps.settle(e, warp)
    total = num_rows * wire
    begun = h.now + w.debt
    ready = begun
    remote = False
    first, last = -1, -1
    if num_rows > 0:
        ready = transfers.through_sm(e, warp, total, 0)
        b = block_at(e, w.block)
        busy = cost(total, h.reduce_mbps)
        b.reduce_free = max(b.reduce_free, begun) + busy
        ready = max(ready, b.reduce_free)
        if h.records != 0:
            passage = Passage(begun, ready, busy, b.reduce_free, total)
            record_pass(e, warp, REDUCE_PIPE, passage)
    else:
        w.debt = 0
    indices = lanes.i32_at(rows.rows_addr, max(num_rows, 1))
    ranks = lanes.i32_at(rows.ranks_addr, max(num_rows, 1))
    for index in range(num_rows):
        rank = own if rows.ranks_addr == 0 else ranks[index]
        remote = remote or rank != own
        offset = rows.base + indices[index] * row_bytes + first_byte
        transfer = transfers.request_row(e, warp, rank, offset, num_bytes, wire)
        transfer_at(e, transfer).key = -1
        if first < 0:
            first = transfer
        else:
            transfer_at(e, last).key = transfer
        last = transfer
    transfers.await_rows(e, warp)
    if remote:
        # A load of a remote row waits for the link in both directions, once for every
        # bytes_in_flight.
        rounds = (total + h.ldst_flight - 1) // h.ldst_flight
        ready = max(ready, begun + rounds * (h.ldst_load + 2 * h.nvl_latency))
    warps.sleep_until(e, warp, max(h.now, ready))
    num_elements = num_bytes // 2
    sums = carray(as_pointer(h.scratch), (num_elements,), np.float32)
    sums[:] = 0
    weights = carray(as_pointer(weights_addr), (max(num_rows, 1),), np.float32)
    transfer = first
    for index in range(num_rows):
        row_addr = transfer_at(e, transfer).slot
        if weights_addr != 0 and index > 0:
            lanes.add_weighted_row(sums, row_addr, weights[index], num_elements)
        elif index == 0:
            lanes.start_sum(sums, row_addr, num_elements)
            if weights_addr != 0:
                sums *= weights[0]
        else:
            lanes.add_row(sums, row_addr, num_elements)
        after = transfer_at(e, transfer).key
        give_transfer(e, transfer)
        transfer = after
    out_offset = out_addr - rank_at(e, own).base + first_byte
    out = transfers.new_transfer(e, warp, ROW, own, out_offset, num_bytes)
    take_slot(e, out)
    lanes.store_bf16(transfer_at(e, out).slot, sums, num_elements)
    transfer_at(e, out).bytes = wire
    transfers.issue(e, warp, out, HBM)


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
    e = this_engine()
    path = transfers.Path(this_rank(), rank, channel)
    span = transfers.Span(src_addr, num_bytes, wire_bytes(e, this_rank(), num_bytes))
    warps.release(e, this_warp())
    transfers.put(e, this_warp(), path, offset, span)


@inner
def put_rows(rank: int, offset: int, rows: RowList, channel: int) -> None:
    e, warp = this_engine(), this_warp()
    path = transfers.Path(this_rank(), rank, channel)
    wire = wire_bytes(e, this_rank(), rows.row_bytes)
    indices = lanes.i32_at(rows.rows_addr, rows.num_rows)
    if rows.num_rows > MOST_SEGMENTS:
        warps.fail(e, warp, TOO_MANY_ROWS, rows.num_rows, MOST_SEGMENTS)
    warps.release(e, warp)
    warps.pay(e, warp, header(e).nic_post)
    for index in range(rows.num_rows):
        at = rows.base + indices[index] * rows.row_bytes
        transfers.check_window(e, warp, this_rank(), at, rows.row_bytes)
        span = transfers.Span(rank_at(e, this_rank()).base + at, rows.row_bytes, wire)
        into = offset + index * rows.row_bytes
        transfers.give_to_nic(e, warp, transfers.new_put(e, warp, path, into, span))


@inner
def put_bytes(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    path = transfers.Path(this_rank(), rank, channel)
    span = transfers.Span(src_addr, num_bytes, num_bytes)
    warps.release(this_engine(), this_warp())
    transfers.put(this_engine(), this_warp(), path, offset, span)


@inner
def put_signal(rank: int, offset: int, value: int, channel: int) -> None:
    path = transfers.Path(this_rank(), rank, channel)
    warps.release(this_engine(), this_warp())
    transfers.put_signal(this_engine(), this_warp(), path, offset, value)


@inner
def _layout(e: int, num_tokens: int) -> None:
    warps.owe(e, this_warp(), num_tokens * header(e).layout)


@inner
def count_ranks(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    e = this_engine()
    _layout(e, num_tokens)
    lanes.count_ranks(topk, num_tokens, counts_addr, header(e).scratch)


@inner
def rank_mask(topk: TopkRow, first_rank: int, num_ranks: int) -> int:
    _layout(this_engine(), 1)
    return lanes.rank_mask(topk, first_rank, num_ranks)


@inner
def select_rank(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
    # Lanes take ids; their loads follow each other without waiting. Places among the lanes and in
    # the expert take a vote, a match and a counter more.
    e = this_engine()
    rounds = (num_tokens * topk.num_topk + 31) // 32
    warps.owe(e, this_warp(), header(e).l2 + 2 * rounds * header(e).word_issue)
    return lanes.select_rank(topk, num_tokens, rank, selected)


@inner
def count_experts(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    _layout(this_engine(), num_tokens)
    lanes.count_experts(topk, num_tokens, counts_addr)


@inner
def sum_rows(matrix: Matrix, num_rows: int, initial_addr: int, sums_addr: int) -> None:
    lanes.sum_rows(matrix, num_rows, initial_addr, sums_addr)
    # Lanes take columns; their loads follow each other without waiting.
    e = this_engine()
    rounds = (matrix.num_columns + 31) // 32
    warps.owe(e, this_warp(), header(e).l2 + num_rows * rounds * header(e).word_issue)


@inner
def route(topk: TopkRow, cursor_addr: int, ranks_addr: int, rows_addr: int) -> int:
    _layout(this_engine(), 1)
    return lanes.route(topk, cursor_addr, ranks_addr, rows_addr)


@inner
def route_experts(topk: TopkRow, cursor_addr: int, lists: ExpertLists) -> int:
    _layout(this_engine(), 1)
    return lanes.route_experts(topk, cursor_addr, lists)


@inner
def scan(counts_addr: int, num_counts: int, begins_addr: int) -> None:
    lanes.scan(counts_addr, num_counts, begins_addr)
    _owe_scan(num_counts)


@inner
def scan_words(offset: int, num_words: int, begins_addr: int) -> None:
    e, warp = this_engine(), this_warp()
    own = warp_at(e, warp).rank
    transfers.check_window(e, warp, own, offset, 8 * num_words)
    lanes.scan_words(rank_at(e, own).base + offset, num_words, begins_addr)
    _owe_scan(num_words)


@inner
def _owe_scan(num_counts: int) -> None:
    # Five shuffle steps for each 32 counts, after one load.
    e = this_engine()
    rounds = (num_counts + 31) // 32
    warps.owe(e, this_warp(), header(e).l2 + 6 * rounds * header(e).word_issue)


@inner
def pause(nanoseconds: int) -> None:
    warps.pay(this_engine(), this_warp(), 1000 * nanoseconds)


@inner
def put_wait(channel: int) -> None:
    transfers.put_wait(this_engine(), this_warp(), channel)


@inner
def put_row_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    e = this_engine()
    transfers.check_window(e, this_warp(), via, src_offset, num_bytes)
    path = transfers.Path(via, target.rank, channel)
    source = rank_at(e, via).base + src_offset
    wire = wire_bytes(e, this_rank(), num_bytes)
    transfers.put(e, this_warp(), path, target.offset, transfers.Span(source, num_bytes, wire))


@inner
def put_bytes_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    e = this_engine()
    transfers.check_window(e, this_warp(), via, src_offset, num_bytes)
    path = transfers.Path(via, target.rank, channel)
    source = rank_at(e, via).base + src_offset
    transfers.put(e, this_warp(), path, target.offset, transfers.Span(source, num_bytes, num_bytes))


@inner
def put_signal_via(via: int, target: Target, value: int, channel: int) -> None:
    path = transfers.Path(via, target.rank, channel)
    transfers.put_signal(this_engine(), this_warp(), path, target.offset, value)


@inner
def load_i32(addr: int) -> int:
    warps.owe(this_engine(), this_warp(), header(this_engine()).word_issue)
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
    warps.mark(this_engine(), this_warp(), stage)


@inner
def at_line(line: int) -> None:
    """Tell where this warp is; binding says so before an instruction that may stall it."""
    warp_at(this_engine(), this_warp()).line = line


@inner
def raised() -> None:
    """End the run because the kernel raised an exception."""
    warps.fail(this_engine(), this_warp(), EXCEPTION, 0, 0)


@inner
def finish() -> None:
    """End this warp."""
    warps.finish(this_engine(), this_warp())
