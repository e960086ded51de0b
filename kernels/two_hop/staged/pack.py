"""Before the first hop of `two_hop/staged`: count, and put a copy of each token by each node.

`count`: worker w = sm * num_warps + warp counts its even, contiguous share of tokens by rank and by
node; warp 0 adds its block's counts to `block_counts[sm]`. `totals` adds those to `own_counts`, and
the library gives every rank the counts of all (`all_counts`). `pack`: so each worker knows the
final row of each of its tokens at each rank, and its place among the rows by (node, token). It
copies a row to each other node's part of `stage_x`, with a record beside it in `stage_records`: the
row's final place at each local rank there, -1 for none, and the token's ids and weights. Of tokens
for the own node it keeps the places in `kept`. Cached: places stay; rows, ids and weights are
copied anew.

No block waits for another; the launches are ordered by the stream.
"""

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import Matrix, TopkRow
from kernels.two_hop.params import Lists
from kernels.two_hop.places import topk_by_node
from kernels.two_hop.senders import keep_rows, write_ids, write_places
from kernels.two_hop.staged.params import CountParams, PackParams


def count(p: CountParams) -> None:
    """Count each worker's tokens by rank and by node."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    first = share_begin(p.num_tokens, worker, num_workers)
    num_tokens = share_begin(p.num_tokens, worker + 1, num_workers) - first
    at = p.topk_idx_addr + 4 * p.num_topk * first
    topk = TopkRow(at, 0, p.num_topk, p.experts_per_rank, p.world_size)
    counts = p.worker_counts_addr + worker * p.counts_bytes
    isa.count_ranks(topk, num_tokens, counts)
    isa.count_ranks(topk_by_node(topk, p.ranks_per_node), num_tokens, counts + 4 * p.world_size)
    isa.block_sync()
    if warp == 0:
        workers = Matrix(counts, p.world_size + p.num_nodes, p.counts_bytes)
        isa.sum_rows(workers, p.num_warps, 0, p.block_counts_addr + sm * p.counts_bytes)


def totals(p: CountParams) -> None:
    """Add the counts of all blocks."""
    if isa.sm_id() == 0 and isa.warp_id() == 0:
        blocks = Matrix(p.block_counts_addr, p.world_size + p.num_nodes, p.counts_bytes)
        isa.sum_rows(blocks, p.num_sms, 0, p.own_counts_addr)


def pack(p: PackParams) -> None:
    """Copy each token's row to the part of each other node that wants it."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    at = p.lists_addr + worker * p.lists_bytes
    begins = at + 8 * p.num_topk
    lists = Lists(at, at + 4 * p.num_topk, 0, 0, p.cursors_addr + worker * p.counts_bytes)
    if not p.cached:
        isa.scan(p.own_counts_addr + 4 * p.world_size, p.num_nodes, begins)
        find_places(p, lists.cursor, begins)
    near_begin = isa.load_i32(begins + 4 * (p.rank // p.ranks_per_node))
    for token in range(
        share_begin(p.num_tokens, worker, num_workers),
        share_begin(p.num_tokens, worker + 1, num_workers),
    ):
        pack_token(p, token, lists, near_begin)


def find_places(p: PackParams, cursor: int, begins: int) -> None:
    """Set this worker's next row at each rank, and its next place among the rows of each node."""
    sm, warp = isa.sm_id(), isa.warp_id()
    nodes = 4 * p.world_size
    isa.sum_rows(Matrix(p.all_counts_addr, p.world_size, p.counts_bytes), p.rank, 0, cursor)
    blocks = p.block_counts_addr
    isa.sum_rows(Matrix(blocks, p.world_size, p.counts_bytes), sm, cursor, cursor)
    isa.sum_rows(Matrix(blocks + nodes, p.num_nodes, p.counts_bytes), sm, begins, cursor + nodes)
    workers = p.worker_counts_addr + sm * p.num_warps * p.counts_bytes
    columns = p.world_size + p.num_nodes
    isa.sum_rows(Matrix(workers, columns, p.counts_bytes), warp, cursor, cursor)


def pack_token(p: PackParams, token: int, lists: Lists, near_begin: int) -> None:
    """Copy a token to its places, keep them, and keep where its sums will come back."""
    at = 4 * p.num_topk * token
    idx, weights = p.topk_idx_addr + at, p.topk_weights_addr + at
    topk = TopkRow(idx, weights, p.num_topk, p.experts_per_rank, p.world_size)
    nodes, places = p.send_nodes_addr + at, p.send_rows_addr + at
    num_ranks = 0
    if p.cached:
        num_nodes = isa.load_i32(p.send_num_addr + 4 * token)
    else:
        num_ranks = isa.route(topk, lists.cursor, lists.ranks, lists.rows)
        by_node = topk_by_node(topk, p.ranks_per_node)
        num_nodes = isa.route(by_node, lists.cursor + 4 * p.world_size, nodes, places)
        isa.store_i32(p.send_num_addr + 4 * token, num_nodes)
    for index in range(num_nodes):
        other, place = isa.load_i32(nodes + 4 * index), isa.load_i32(places + 4 * index)
        if other == p.rank // p.ranks_per_node:
            if not p.cached:
                keep_near(p, place - near_begin, token, lists, num_ranks)
        else:
            record = p.stage_records_addr + place * p.record_bytes
            if not p.cached:
                write_places(p, record, other, lists, num_ranks)
            write_ids(p, record, topk)
            into, source = p.stage_x + place * p.x_row_bytes, p.x_addr + token * p.x_row_bytes
            isa.copy_row(p.rank, into, source, p.x_row_bytes)


def keep_near(p: PackParams, place: int, token: int, lists: Lists, num_ranks: int) -> None:
    """Keep where an own token's rows on this node go."""
    kept = p.kept_addr + place * p.kept_bytes
    isa.store_i32(kept, keep_rows(p, kept, lists, num_ranks))
    isa.store_i32(kept + 4, token)
