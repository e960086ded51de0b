"""Count, then pack: what a framework runs on all SMs before it calls the library.

`layout`: worker w = sm * num_warps + warp counts the columns of its even, contiguous share of
tokens: destination ranks (`dedup`, `padded`) or experts (`selection`). Warp 0 adds its block's
counts to `block_counts[sm]`. `pack`: each block adds all `block_counts` to `totals` and scans them
to `begins`, so every worker knows the first place of each of its columns in the send buffer,
ordered by (column, token). Rows, ids and weights are copied there, and where each went is kept for
combine. Where splits are padded, columns begin at the equal splits in `send_begins`, which the
exchange of counts has left; it was told `begins` by `totals`, and `pack` scans nothing.

No block waits for another; the launches are ordered by the stream.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import ExpertLists, Matrix, TopkRow


class LayoutParams(NamedTuple):
    """Parameters of `layout`; fields named after regions are offsets, `_addr` addresses."""

    num_sms: int
    num_warps: int
    world_size: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    by_expert: int
    num_columns: int
    column_bytes: int
    topk_idx_addr: int
    worker_counts_addr: int
    block_counts_addr: int


def layout(p: LayoutParams) -> None:
    """Count the columns of each worker's tokens."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    first = share_begin(p.num_tokens, worker, num_workers)
    last = share_begin(p.num_tokens, worker + 1, num_workers)
    at = p.topk_idx_addr + 4 * p.num_topk * first
    tokens = TopkRow(at, 0, p.num_topk, p.experts_per_rank, p.world_size)
    counts = p.worker_counts_addr + worker * p.column_bytes
    if p.by_expert:
        isa.count_experts(tokens, last - first, counts)
    else:
        isa.count_ranks(tokens, last - first, counts)
    isa.block_sync()
    if warp == 0:
        workers = Matrix(counts, p.num_columns, p.column_bytes)
        isa.sum_rows(workers, p.num_warps, 0, p.block_counts_addr + sm * p.column_bytes)


class TotalsParams(NamedTuple):
    """Parameters of `totals`; `_addr` are addresses."""

    num_sms: int
    num_columns: int
    column_bytes: int
    block_counts_addr: int
    block_totals_addr: int
    begins_addr: int


def totals(p: TotalsParams) -> None:
    """Work out where each column begins, for an exchange of counts that comes before `pack`."""
    if isa.sm_id() > 0 or isa.warp_id() > 0:
        return
    blocks = Matrix(p.block_counts_addr, p.num_columns, p.column_bytes)
    isa.sum_rows(blocks, p.num_sms, 0, p.block_totals_addr)
    isa.scan(p.block_totals_addr, p.num_columns, p.begins_addr)


class PackParams(NamedTuple):
    """Parameters of `pack`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    num_sms: int
    num_warps: int
    world_size: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    by_expert: int
    is_padded: int
    cached: int
    num_columns: int
    column_bytes: int
    ids_bytes: int
    x_row_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    worker_counts_addr: int
    block_counts_addr: int
    block_totals_addr: int
    begins_addr: int
    send_begins_addr: int
    cursors_addr: int
    send_num_addr: int
    send_columns_addr: int
    send_rows_addr: int
    send_weights_addr: int
    send_x: int
    send_idx_addr: int
    send_topk_weights_addr: int


def pack(p: PackParams) -> None:
    """Copy each token's row to its places in the send buffer."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    cursor = p.cursors_addr + worker * p.column_bytes
    if not p.cached:
        blocks = Matrix(p.block_counts_addr, p.num_columns, p.column_bytes)
        own = p.block_totals_addr + 2 * sm * p.column_bytes
        begins = own + p.column_bytes
        if p.is_padded:
            begins = p.send_begins_addr
        else:
            if warp == 0:
                isa.sum_rows(blocks, p.num_sms, 0, own)
                isa.scan(own, p.num_columns, begins)
                if sm == 0:
                    isa.scan(own, p.num_columns, p.begins_addr)
            isa.block_sync()
        isa.sum_rows(blocks, sm, begins, cursor)
        first_worker = p.worker_counts_addr + sm * p.num_warps * p.column_bytes
        isa.sum_rows(Matrix(first_worker, p.num_columns, p.column_bytes), warp, cursor, cursor)
    first = share_begin(p.num_tokens, worker, num_workers)
    last = share_begin(p.num_tokens, worker + 1, num_workers)
    for token in range(first, last):
        pack_token(p, token, cursor)


def pack_token(p: PackParams, token: int, cursor: int) -> None:
    """Copy a token's row, ids and weights to its places."""
    at = 4 * p.num_topk * token
    topk = TopkRow(
        p.topk_idx_addr + at, p.topk_weights_addr + at, p.num_topk, p.experts_per_rank, p.world_size
    )
    columns, rows, weights = (
        p.send_columns_addr + at,
        p.send_rows_addr + at,
        p.send_weights_addr + at,
    )
    if p.cached:
        count = isa.load_i32(p.send_num_addr + 4 * token)
    else:
        if p.by_expert:
            count = isa.route_experts(topk, cursor, ExpertLists(columns, rows, weights))
        else:
            count = isa.route(topk, cursor, columns, rows)
        isa.store_i32(p.send_num_addr + 4 * token, count)
    for index in range(count):
        column = isa.load_i32(columns + 4 * index)
        row = isa.load_i32(rows + 4 * index)
        isa.copy_row(
            p.rank, p.send_x + row * p.x_row_bytes, p.x_addr + token * p.x_row_bytes, p.x_row_bytes
        )
        ids, own_weights = (
            p.send_idx_addr + row * p.ids_bytes,
            p.send_topk_weights_addr + row * p.ids_bytes,
        )
        if p.by_expert:
            isa.store_i32(ids, column % p.experts_per_rank)
            isa.store_i32(own_weights, isa.load_i32(weights + 4 * index))
        else:
            isa.localize_topk(column, ids, own_weights, topk)
