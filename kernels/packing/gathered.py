"""Around an all-gather, on all SMs: pad what is sent, find the own tokens, select their rows.

`prepare`, before it: the splits of an all-gather are equal, `split_tokens` rows of each rank, so
ids of tokens that a rank does not have are sent as -1 (`own_idx`; rows and weights of such tokens
move as they are). It also writes the equal splits to `send_begins` and `recv_begins`, and for each
token where its rows will come back: combine brings `split_tokens` rows from every rank, row t of
them for token t, of which those of the ranks that have t are added, in ascending order.

After it a rank knows every token's experts, and no counts are exchanged. An item (source, part) is
an even, contiguous share of one source's tokens; worker w takes items w, w + workers, ...; `find`
counts each item's tokens that have an expert here, `select` scans these counts in every block, so
that each item knows its first row, and copies rows, ids made local, and weights. What it found is
kept in `recv_places`; the cached form copies by that, an even share of rows to each worker.

No block waits for another; the launches are ordered by the stream.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import TopkRow

#: Bytes of ids that one copy takes, not more than a slot of any device.
_IDS_BYTES = 4096


class PrepareParams(NamedTuple):
    """Parameters of `prepare`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    num_tokens: int
    split_tokens: int
    num_topk: int
    experts_per_rank: int
    ids_bytes: int
    column_bytes: int
    topk_idx_addr: int
    own_idx: int
    own_idx_addr: int
    cursors_addr: int
    send_begins_addr: int
    recv_begins_addr: int
    send_num_addr: int
    send_columns_addr: int
    send_rows_addr: int


def prepare(p: PrepareParams) -> None:
    """Pad the own ids, note where each token's rows come back, write the equal splits."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    if sm == 0:
        for peer in range(warp, p.world_size + 1, p.num_warps):
            isa.store_i32(p.send_begins_addr + 4 * peer, peer * p.split_tokens)
            isa.store_i32(p.recv_begins_addr + 4 * peer, peer * p.split_tokens)
    first = share_begin(p.split_tokens, worker, num_workers)
    last = share_begin(p.split_tokens, worker + 1, num_workers)
    num_own = min(last, p.num_tokens)
    chunk = max(_IDS_BYTES // p.ids_bytes, 1)
    for token in range(first, num_own, chunk):
        at = token * p.ids_bytes
        num_bytes = min(chunk, num_own - token) * p.ids_bytes
        isa.copy_bytes(p.rank, p.own_idx + at, p.topk_idx_addr + at, num_bytes)
    for token in range(first, num_own):
        note_returns(p, token, p.cursors_addr + worker * p.column_bytes)
    for entry in range(max(first, p.num_tokens) * p.num_topk, last * p.num_topk):
        isa.store_i32(p.own_idx_addr + 4 * entry, -1)


def note_returns(p: PrepareParams, token: int, cursor: int) -> None:
    """Write which rows of the splits that come back are a token's."""
    at = 4 * p.num_topk * token
    topk = TopkRow(p.topk_idx_addr + at, 0, p.num_topk, p.experts_per_rank, p.world_size)
    ranks, rows = p.send_columns_addr + at, p.send_rows_addr + at
    count = isa.route(topk, cursor, ranks, rows)
    for index in range(count):
        rank = isa.load_i32(ranks + 4 * index)
        isa.store_i32(rows + 4 * index, rank * p.split_tokens + token)
    isa.store_i32(p.send_num_addr + 4 * token, count)


class SelectParams(NamedTuple):
    """Parameters of both kernels; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    split_tokens: int
    num_topk: int
    experts_per_rank: int
    cached: int
    ids_bytes: int
    x_row_bytes: int
    column_bytes: int
    gather_x_addr: int
    gather_idx_addr: int
    gather_weights_addr: int
    worker_counts_addr: int
    item_counts_addr: int
    item_begins_addr: int
    recv_x: int
    recv_topk_idx: int
    recv_topk_weights: int
    recv_counts_addr: int
    num_recv_addr: int
    recv_places_addr: int


def find(p: SelectParams) -> None:
    """Count the tokens of each item that have an expert here."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    num_workers = p.num_sms * p.num_warps
    num_parts = (num_workers + p.world_size - 1) // p.world_size
    counts = p.worker_counts_addr + worker * p.column_bytes
    for item in range(worker, p.world_size * num_parts, num_workers):
        first = first_token(p, item, num_parts)
        isa.count_ranks(topk_of(p, first), first_token(p, item + 1, num_parts) - first, counts)
        isa.store_i32(p.item_counts_addr + 4 * item, isa.load_i32(counts + 4 * p.rank))


def select(p: SelectParams) -> None:
    """Copy the rows of tokens that have an expert here, by (source rank, source token)."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    if p.cached:
        num_recv = isa.load_i32(p.num_recv_addr)
        begin = share_begin(num_recv, worker, num_workers)
        for row in range(begin, share_begin(num_recv, worker + 1, num_workers)):
            take(p, isa.load_i32(p.recv_places_addr + 4 * row), row)
        return
    num_parts = (num_workers + p.world_size - 1) // p.world_size
    num_items = p.world_size * num_parts
    begins = p.item_begins_addr + 4 * sm * (num_items + 1)
    if warp == 0:
        isa.scan(p.item_counts_addr, num_items, begins)
    isa.block_sync()
    if sm == 0:
        write_counts(p, begins, num_parts)
    for item in range(worker, num_items, num_workers):
        row = isa.load_i32(begins + 4 * item)
        for token in range(first_token(p, item, num_parts), first_token(p, item + 1, num_parts)):
            if isa.rank_mask(topk_of(p, token), p.rank, 1):
                isa.store_i32(p.recv_places_addr + 4 * row, token)
                take(p, token, row)
                row += 1


def write_counts(p: SelectParams, begins: int, num_parts: int) -> None:
    """Write how many rows came from each source, and from all."""
    for source in range(isa.warp_id(), p.world_size, p.num_warps):
        begin = isa.load_i32(begins + 4 * source * num_parts)
        end = isa.load_i32(begins + 4 * (source + 1) * num_parts)
        isa.store_i32(p.recv_counts_addr + 4 * source, end - begin)
        if source == p.world_size - 1:
            isa.store_i32(p.num_recv_addr, end)


def first_token(p: SelectParams, item: int, num_parts: int) -> int:
    """Return the first token of an item, counted over the splits of all sources."""
    source, part = item // num_parts, item % num_parts
    return source * p.split_tokens + share_begin(p.split_tokens, part, num_parts)


def topk_of(p: SelectParams, token: int) -> TopkRow:
    """Return the gathered selections of a token, counted over the splits of all sources."""
    at = p.ids_bytes * token
    return TopkRow(
        p.gather_idx_addr + at,
        p.gather_weights_addr + at,
        p.num_topk,
        p.experts_per_rank,
        p.world_size,
    )


def take(p: SelectParams, token: int, row: int) -> None:
    """Copy a gathered token to a row of `recv_x`."""
    source = p.gather_x_addr + token * p.x_row_bytes
    isa.copy_row(p.rank, p.recv_x + row * p.x_row_bytes, source, p.x_row_bytes)
    into = row * p.ids_bytes
    isa.copy_topk(p.rank, p.recv_topk_idx + into, p.recv_topk_weights + into, topk_of(p, token))
