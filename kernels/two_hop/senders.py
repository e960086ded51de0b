"""The first hop of `two_hop`: posters put rows to other nodes, near warps write the own node's.

Flags, rings and records as `kernels.two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import RowList, TopkRow
from kernels.two_hop.params import (
    DispatchParams,
    Lists,
    Sizes,
    Targets,
    mate_on,
    node_at,
    own_lists,
    relative,
)
from kernels.two_hop.places import channel_share, topk_by_node, topk_row


def post_rows(p: DispatchParams) -> None:
    """Put the tokens of this warp's channel once to each other node that wants them."""
    for other in range(p.num_nodes):
        isa.store_i32(own_lists(p).cursor + 4 * other, 0)
    first, last = channel_share(p, own_channel(p))
    for token in range(first, last):
        post_token(p, token)
    for index in range(p.num_nodes - 1):
        other = node_at(p.rank // p.ranks_per_node, index, p.num_nodes)
        count = isa.load_i32(own_lists(p).cursor + 4 * other)
        num_posted = count // p.chunk_rows * p.chunk_rows
        if num_posted < count:
            post_chunk(p, other, num_posted, count)
            num_posted += p.chunk_rows
        sent = p.sent_addr + 8 * (other * p.num_sms * p.channel_warps + own_channel(p))
        isa.store_i64(sent, isa.load_i64(sent) + num_posted)
    isa.put_wait(own_channel(p))


def post_token(p: DispatchParams, token: int) -> None:
    """Note a token for each other node that wants it, and put the chunks that it fills."""
    topk, lists = topk_row(p, token), own_lists(p)
    num_ranks = 0
    if not p.cached:
        cursor = p.cursors_addr + own_channel(p) * p.counts_bytes
        num_ranks = isa.route(topk, cursor, lists.ranks, lists.rows)
    by_node = topk_by_node(topk, p.ranks_per_node)
    num_nodes = isa.route(by_node, lists.cursor, lists.nodes, lists.places)
    for step in range(num_nodes):
        # Nodes and tokens start at different nodes, so that no NIC is everybody's first.
        index = (step + p.rank // p.ranks_per_node + token) % num_nodes
        other = isa.load_i32(own_lists(p).nodes + 4 * index)
        if other != p.rank // p.ranks_per_node:
            place = isa.load_i32(own_lists(p).places + 4 * index)
            if not p.cached:
                record = record_addr(p, other, place)
                write_places(p, record, other, own_lists(p), num_ranks)
                write_ids(p, record, topk_row(p, token))
            isa.store_i32(pending_addr(p, other, place), token)
            if (place + 1) % p.chunk_rows == 0:
                post_chunk(p, other, place + 1 - p.chunk_rows, place + 1)


def post_chunk(p: DispatchParams, other: int, begin: int, end: int) -> None:
    """Put a chunk's rows into its stream's ring, then their records, and signal it.

    The rows of a chunk are one request: a NIC sends in order, and a chunk whose last row waits
    behind those of other channels would leave the forwarders idle.
    """
    channel = own_channel(p)
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    at = isa.load_i64(p.sent_addr + 8 * (other * num_channels + channel)) + begin
    mine = relative(node, other, p.num_nodes) * num_channels + channel
    isa.wait_ge(p.credit + 8 * mine, at + p.chunk_rows - p.ring_rows)
    peer = mate_on(p.rank, other, p.ranks_per_node)
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    slot = theirs * p.ring_rows + at % p.ring_rows
    tokens = pending_addr(p, other, begin)
    rows = RowList(end - begin, 0, tokens, p.x, p.x_row_bytes)
    isa.put_rows(peer, p.ring + slot * p.x_row_bytes, rows, channel)
    source = record_addr(p, other, begin)
    num_bytes = (end - begin) * p.record_bytes
    isa.put_bytes(peer, p.ring_records + slot * p.record_bytes, source, num_bytes, channel)
    isa.put_signal(peer, p.tail + 8 * theirs, p.chunk_rows, channel)


def own_channel(p: DispatchParams) -> int:
    """Return the channel of this warp, a poster or a near warp."""
    return isa.sm_id() * p.channel_warps + isa.warp_id() % p.channel_warps


def pending_addr(p: DispatchParams, other: int, place: int) -> int:
    """Return where the token of a place waits for its chunk to be full."""
    stream = other * p.num_sms * p.channel_warps + own_channel(p)
    return p.pending_addr + 4 * (stream * p.chunk_rows + place % p.chunk_rows)


def record_addr(p: DispatchParams, other: int, place: int) -> int:
    """Return where a record waits to be put; it stays for cached dispatches."""
    num_channels = p.num_sms * p.channel_warps
    row = (other * num_channels + own_channel(p)) * p.channel_rows + place
    return p.records_addr + row * p.record_bytes


def write_places(p: Sizes, record: int, other: int, lists: Lists, num_ranks: int) -> None:
    """Write into a record where a row goes at each rank of a node, -1 for nowhere."""
    for local in range(p.ranks_per_node):
        isa.store_i32(record + 4 * local, -1)
    for index in range(num_ranks):
        rank = isa.load_i32(lists.ranks + 4 * index)
        if rank // p.ranks_per_node == other:
            row = isa.load_i32(lists.rows + 4 * index)
            isa.store_i32(record + 4 * (rank % p.ranks_per_node), row)


def write_ids(p: Sizes, record: int, topk: TopkRow) -> None:
    """Write a token's ids and weights into a record.

    Ids stay global: to one rank that owns all experts they are local.
    """
    whole = TopkRow(
        topk.idx_addr, topk.weights_addr, p.num_topk, p.experts_per_rank * p.world_size, 1
    )
    ids = record + 4 * p.ranks_per_node
    isa.localize_topk(0, ids, ids + 4 * p.num_topk, whole)


def send_near(p: DispatchParams) -> None:
    """Write the rows of the channel's tokens on the own node into their final places."""
    node, channel = p.rank // p.ranks_per_node, own_channel(p)
    stream = relative(node, node, p.num_nodes) * p.num_sms * p.channel_warps + channel
    kept = p.kept_addr + stream * p.channel_rows * p.kept_bytes
    if p.cached:
        num_kept = isa.load_i32(p.expected_addr + 4 * stream)
        for _ in range(num_kept):
            token = isa.load_i32(kept + 4)
            write_rows(p, kept, topk_row(p, token), p.x_addr + token * p.x_row_bytes)
            kept += p.kept_bytes
        return
    first, last = channel_share(p, channel)
    for token in range(first, last):
        lists = own_lists(p)
        cursor = p.cursors_addr + (p.num_sms * p.channel_warps + channel) * p.counts_bytes
        num_ranks = isa.route(topk_row(p, token), cursor, lists.ranks, lists.rows)
        count = keep_rows(p, kept, lists, num_ranks)
        if count > 0:
            isa.store_i32(kept, count)
            isa.store_i32(kept + 4, token)
            write_rows(p, kept, topk_row(p, token), p.x_addr + token * p.x_row_bytes)
            kept += p.kept_bytes


def keep_rows(p: Sizes, kept: int, lists: Lists, num_ranks: int) -> int:
    """Keep where a token's rows on the own node go; return their number."""
    count = 0
    for index in range(num_ranks):
        rank = isa.load_i32(lists.ranks + 4 * index)
        if rank // p.ranks_per_node == p.rank // p.ranks_per_node:
            keep_row(p, kept, count, rank, isa.load_i32(lists.rows + 4 * index))
            count += 1
    return count


def keep_row(p: Sizes, kept: int, index: int, rank: int, row: int) -> None:
    """Keep where one of a token's rows on this node goes: for this hop, and for combine."""
    isa.store_i32(kept + 8 + 4 * index, rank)
    isa.store_i32(kept + 8 + 4 * (p.ranks_per_node + index), row)


def write_rows(p: Targets, kept: int, topk: TopkRow, x_addr: int) -> None:
    """Write a row, its ids and weights into its final place at each rank that was kept.

    The row must stay as it is until a release by this warp has returned.
    """
    count = isa.load_i32(kept)
    for step in range(count):
        index = (step + p.rank + isa.warp_id()) % count
        rank = isa.load_i32(kept + 8 + 4 * index)
        row = isa.load_i32(kept + 8 + 4 * (p.ranks_per_node + index))
        at = 4 * p.num_topk * row
        isa.copy_topk(rank, p.recv_topk_idx + at, p.recv_topk_weights + at, topk)
        isa.copy_row_bulk(rank, p.recv_x + row * p.x_row_bytes, x_addr, p.x_row_bytes)
