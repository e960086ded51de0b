"""After the exchange, on all SMs: sort what came by expert, sort what goes back by rank, reduce.

A pair is (source rank, local expert). Its rows lie together in the exchange's buffer, ordered by
(source, expert, token), and in `recv_x`, ordered by (expert, source, token). `unpack` and
`pack_back` cut pairs into parts and give worker w the items w, w + workers, ...; `reduce` gives
each worker an even, contiguous share of tokens. No block waits for another.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import RowList


class UnpackParams(NamedTuple):
    """Parameters of both kernels; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    counts_per_rank: int
    x_row_bytes: int
    y_row_bytes: int
    stage_x_addr: int
    stage_idx_addr: int
    stage_weights_addr: int
    recv_x: int
    recv_topk_idx_addr: int
    recv_topk_weights_addr: int
    recv_counts_addr: int
    pair_begins_addr: int
    y_addr: int
    back_y: int


def unpack(p: UnpackParams) -> None:
    """Sort received rows by (local expert, source rank, token)."""
    walk_pairs(p, 0)


def pack_back(p: UnpackParams) -> None:
    """Sort rows that go back by (source rank, local expert, token)."""
    walk_pairs(p, 1)


def walk_pairs(p: UnpackParams, back: int) -> None:
    """Move this worker's parts of all pairs between the two orders."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    num_workers = p.num_sms * p.num_warps
    num_pairs = p.world_size * p.counts_per_rank
    num_parts = (4 * num_workers + num_pairs - 1) // num_pairs
    begin = 0
    for pair in range(num_pairs):
        count = isa.load_i32(p.recv_counts_addr + 4 * pair)
        # Part k of pair j belongs to worker (j * num_parts + k) % num_workers.
        part = (worker - pair * num_parts) % num_workers
        while part < num_parts:
            place = isa.load_i32(p.pair_begins_addr + 4 * pair)
            for index in range(
                share_begin(count, part, num_parts), share_begin(count, part + 1, num_parts)
            ):
                if back:
                    move_back(p, place + index, begin + index)
                else:
                    move_in(p, begin + index, place + index)
            part += num_workers
        begin += count


def move_in(p: UnpackParams, row: int, place: int) -> None:
    """Copy a received row, its id and its weight to their final place."""
    source = p.stage_x_addr + row * p.x_row_bytes
    isa.copy_row(p.rank, p.recv_x + place * p.x_row_bytes, source, p.x_row_bytes)
    isa.store_i32(p.recv_topk_idx_addr + 4 * place, isa.load_i32(p.stage_idx_addr + 4 * row))
    isa.store_i32(
        p.recv_topk_weights_addr + 4 * place, isa.load_i32(p.stage_weights_addr + 4 * row)
    )


def move_back(p: UnpackParams, place: int, row: int) -> None:
    """Copy an expert's output to its place in the exchange's buffer."""
    source = p.y_addr + place * p.y_row_bytes
    isa.copy_row(p.rank, p.back_y + row * p.y_row_bytes, source, p.y_row_bytes)


class ReduceParams(NamedTuple):
    """Parameters of `reduce`; fields named after regions are offsets, `_addr` addresses."""

    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    by_expert: int
    y_row_bytes: int
    out_addr: int
    stage_y: int
    send_num_addr: int
    send_rows_addr: int
    send_weights_addr: int


def reduce(p: ReduceParams) -> None:
    """Sum each token's rows out of the exchange's buffer."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    num_workers = p.num_sms * p.num_warps
    for token in range(
        share_begin(p.num_tokens, worker, num_workers),
        share_begin(p.num_tokens, worker + 1, num_workers),
    ):
        at = 4 * p.num_topk * token
        num_rows = isa.load_i32(p.send_num_addr + 4 * token)
        rows = RowList(num_rows, 0, p.send_rows_addr + at, p.stage_y, p.y_row_bytes)
        out_addr = p.out_addr + token * p.y_row_bytes
        if p.by_expert:
            isa.reduce_rows_weighted(out_addr, rows, p.send_weights_addr + at)
        else:
            isa.reduce_rows(out_addr, rows)
