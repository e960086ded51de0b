"""The first hop of `ring_two_hop` dispatch: senders fill rings, their coordinator puts chunks.

Flags, rings and records as `kernels.ring_two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import Matrix, TopkRow
from kernels.ring_two_hop.params import (
    EPOCH,
    SENDER_WARPS,
    DispatchParams,
    Place,
    Span,
    channel_of,
    channel_tokens,
    last_signal,
    scratch_of,
)


def channel_counts(p: DispatchParams) -> Span:
    """Return local addresses of the rows, by rank then node, before and up to the channel's end."""
    columns = p.world_size + p.num_nodes
    begins = scratch_of(p) + 48 * p.num_nodes
    ends = begins + p.counts_bytes
    blocks = Matrix(p.block_counts_addr, columns, p.counts_bytes)
    isa.sum_rows(blocks, 2 * channel_of(), 0, begins)
    isa.sum_rows(blocks, 2 * channel_of() + 2, 0, ends)
    return Span(begins, ends)


def fill_rings(p: DispatchParams, place: Place, sender: int) -> None:
    """Tell nodes of the channel, then write every SENDER_WARPS-th token into its nodes' rings."""
    counts = channel_counts(p)
    for node in range(sender, p.num_nodes, SENDER_WARPS):
        tell_node(p, place, node, counts)
    tokens = channel_tokens(p.num_tokens, channel_of(), p.num_sms)
    filled = p.filled + 8 * (channel_of() * SENDER_WARPS + sender)
    # By node, the last credit seen: less than any that is needed.
    for node in range(p.num_nodes):
        isa.store_i64(scratch_of(p) + 8 * node, place.base)
    for step in range(sender, tokens.end - tokens.begin, SENDER_WARPS):
        token = tokens.begin + step
        at = 4 * p.num_copies * token
        num_nodes = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_nodes):
            node = isa.load_i32(p.send_nodes_addr + at + 4 * index)
            slot = isa.load_i32(p.send_slots_addr + at + 4 * index)
            credit = channel_of() * p.num_nodes + node
            needed = place.base + slot + 1 - p.dispatch_rdma_recv
            if isa.load_i64(scratch_of(p) + 8 * node) < needed:
                seen = isa.wait_ge(p.rdma_credit + 8 * credit, needed)
                isa.store_i64(scratch_of(p) + 8 * node, seen)
            write_record(p, place, token, node, slot)
        isa.store_release(p.rank, filled, place.base + step + SENDER_WARPS)


def tell_node(p: DispatchParams, place: Place, node: int, counts: Span) -> None:
    """Tell a node of the channel's rows for each of its ranks, and for itself."""
    stream = channel_of() * p.num_nodes + node
    theirs = channel_of() * p.num_nodes + place.node
    meta = p.send_meta_addr + stream * p.channel_meta_bytes
    if node == place.node:
        meta = p.channel_meta_addr + theirs * p.channel_meta_bytes
    for local in range(p.ranks_per_node + 1):
        column = p.world_size + node
        if local < p.ranks_per_node:
            column = node * p.ranks_per_node + local
        isa.store_i32(meta + 8 * local, isa.load_i32(counts.begin + 4 * column))
        isa.store_i32(meta + 8 * local + 4, isa.load_i32(counts.end + 4 * column))
    if node == place.node:
        isa.store_release(p.rank, p.told + 8 * theirs, place.base + EPOCH)
    else:
        peer = node * p.ranks_per_node + place.local
        into = p.channel_meta + theirs * p.channel_meta_bytes
        isa.put_bytes(peer, into, meta, p.channel_meta_bytes, channel_of())
        isa.put_signal(peer, p.told + 8 * theirs, EPOCH, channel_of())


def write_record(p: DispatchParams, place: Place, token: int, node: int, slot: int) -> None:
    """Write a token's record for a node into its slot of the send ring."""
    ring = (channel_of() * p.num_nodes + node) * p.dispatch_rdma_recv
    at = ring + slot % p.dispatch_rdma_recv
    rows, info = p.send_rows, p.send_info_addr
    if node == place.node:
        rows, info = p.rdma_rows, p.rdma_info_addr
    info += at * p.info_bytes
    topk = 4 * p.num_topk * token
    idx, weights = p.topk_idx_addr + topk, p.topk_weights_addr + topk
    by_rank = TopkRow(idx, weights, p.num_topk, p.experts_per_rank, p.world_size)
    # Ids stay global: to one rank that owns all experts they are local.
    whole = TopkRow(idx, weights, p.num_topk, p.experts_per_rank * p.world_size, 1)
    isa.store_i32(info, place.node)
    isa.store_i32(info + 4, isa.rank_mask(by_rank, node * p.ranks_per_node, p.ranks_per_node))
    isa.localize_topk(0, info + 8, info + 8 + 4 * p.num_topk, whole)
    x_addr = p.x_addr + token * p.x_row_bytes
    isa.copy_row(p.rank, rows + at * p.x_row_bytes, x_addr, p.x_row_bytes)


def put_chunks(p: DispatchParams, place: Place) -> None:
    """Put the records of each node in chunks as senders complete them, in the order of tokens."""
    counts = channel_counts(p)
    num_written, num_put = scratch_of(p), scratch_of(p) + 8 * p.num_nodes
    totals = scratch_of(p) + 16 * p.num_nodes
    for node in range(p.num_nodes):
        column = 4 * (p.world_size + node)
        total = isa.load_i32(counts.end + column) - isa.load_i32(counts.begin + column)
        isa.store_i64(num_written + 8 * node, 0)
        isa.store_i64(num_put + 8 * node, 0)
        isa.store_i64(totals + 8 * node, total)
        if total == 0:
            put_chunk(p, place, node, Span(0, 0), 0)
    tokens = channel_tokens(p.num_tokens, channel_of(), p.num_sms)
    num_tokens = tokens.end - tokens.begin
    filled = p.filled + 8 * channel_of() * SENDER_WARPS
    complete = 0
    for step in range(num_tokens):
        if step >= complete:
            isa.wait_ge(filled + 8 * (step % SENDER_WARPS), place.base + step + 1)
            least = isa.min_words(filled, 8, SENDER_WARPS) - place.base
            complete = max(step + 1, least)
        token = tokens.begin + step
        at = 4 * p.num_copies * token
        num_nodes = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_nodes):
            node = isa.load_i32(p.send_nodes_addr + at + 4 * index)
            end = isa.load_i32(p.send_slots_addr + at + 4 * index) + 1
            begin = isa.load_i64(num_put + 8 * node)
            total = isa.load_i64(totals + 8 * node)
            if end - begin == p.dispatch_rdma_send or end == total:
                put_chunk(p, place, node, Span(begin, end), total)
                isa.store_i64(num_put + 8 * node, end)


def put_chunk(p: DispatchParams, place: Place, node: int, rows: Span, total: int) -> None:
    """Put consecutive records of a node, which lie together in its ring, and signal them."""
    stream = channel_of() * p.num_nodes + node
    theirs = channel_of() * p.num_nodes + place.node
    if node == place.node:
        isa.store_release(p.rank, p.rdma_tail + 8 * theirs, place.base + rows.end)
        return
    peer = node * p.ranks_per_node + place.local
    num_rows = rows.end - rows.begin
    if num_rows > 0:
        slot = rows.begin % p.dispatch_rdma_recv
        mine, into = stream * p.dispatch_rdma_recv + slot, theirs * p.dispatch_rdma_recv + slot
        isa.put_row(
            peer,
            p.rdma_rows + into * p.x_row_bytes,
            p.send_rows_addr + mine * p.x_row_bytes,
            num_rows * p.x_row_bytes,
            channel_of(),
        )
        isa.put_bytes(
            peer,
            p.rdma_info + into * p.info_bytes,
            p.send_info_addr + mine * p.info_bytes,
            num_rows * p.info_bytes,
            channel_of(),
        )
    value = last_signal(rows.begin, num_rows, total)
    isa.put_signal(peer, p.rdma_tail + 8 * theirs, value, channel_of())
