"""Counting and telling: from each rank's selections to the final row of every token.

Flags and buffers as `kernels.two_hop.dispatch` says.
"""

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import Matrix, TopkRow
from kernels.two_hop.params import DispatchParams, lists_of, mate_on, node_at, relative


def topk_row(p: DispatchParams, token: int) -> TopkRow:
    """Return a token's selections, by rank."""
    at = 4 * p.num_topk * token
    return TopkRow(
        p.topk_idx_addr + at, p.topk_weights_addr + at, p.num_topk, p.experts_per_rank, p.world_size
    )


def topk_by_node(topk: TopkRow, ranks_per_node: int) -> TopkRow:
    """Return the same selections as if a node were one rank."""
    return TopkRow(
        topk.idx_addr,
        topk.weights_addr,
        topk.num_topk,
        topk.experts_per_rank * ranks_per_node,
        topk.world_size // ranks_per_node,
    )


def channel_share(p: DispatchParams, channel: int) -> tuple[int, int]:
    """Return the first token of a channel and the first after it."""
    num_channels = p.num_sms * p.channel_warps
    return (
        share_begin(p.num_tokens, channel, num_channels),
        share_begin(p.num_tokens, channel + 1, num_channels),
    )


def count_share(p: DispatchParams, sm: int, warp: int) -> None:
    """Count a channel's tokens: near warps by rank, posters by node."""
    channel = sm * p.channel_warps + warp % p.channel_warps
    first, last = channel_share(p, channel)
    topk = topk_row(p, first)
    if warp < p.channel_warps:
        lists = lists_of(p.lists_addr, sm * p.num_warps + warp, p.num_topk, p.num_nodes)
        isa.count_ranks(topk_by_node(topk, p.ranks_per_node), last - first, lists.cursor)
        for node in range(p.num_nodes):
            count = isa.load_i32(lists.cursor + 4 * node)
            isa.store_i32(p.node_counts_addr + node * p.channels_bytes + 4 * channel, count)
    elif warp < 2 * p.channel_warps:
        isa.count_ranks(topk, last - first, p.worker_counts_addr + channel * p.counts_bytes)


def tell_counts(p: DispatchParams, warp: int, fresh: int) -> None:
    """Give every rank this rank's counts, and pass on those of the rail; all warps of block 0."""
    if warp == 0:
        isa.wait_ge(p.counted, fresh * p.num_sms)
        workers = Matrix(p.worker_counts_addr, p.world_size, p.counts_bytes)
        isa.sum_rows(workers, p.num_sms * p.channel_warps, 0, p.own_counts_addr)
    isa.block_sync()
    for index in range(warp, p.num_nodes - 1, p.num_warps):
        put_counts(p, node_at(p.rank // p.ranks_per_node, index, p.num_nodes), fresh)
    # Ranks of the node take the own counts first, then those of each rail peer as they come.
    for turn in range(warp, p.num_nodes * p.ranks_per_node, p.num_warps):
        mate = p.rank - p.rank % p.ranks_per_node + turn % p.ranks_per_node
        index = turn // p.ranks_per_node
        source = p.rank
        row = p.own_counts_addr
        if index > 0:
            other = node_at(p.rank // p.ranks_per_node, index - 1, p.num_nodes)
            source = mate_on(p.rank, other, p.ranks_per_node)
            row = p.counts_addr + counts_of(p, fresh, source)
            isa.wait_ge(p.rail_hello + 8 * other, fresh)
        if index == 0 or mate != p.rank:
            isa.copy_bytes(mate, p.counts + counts_of(p, fresh, source), row, p.counts_bytes)
        isa.fence_release()
        isa.add(mate, p.hello + 8 * source, 1)


def put_counts(p: DispatchParams, other: int, fresh: int) -> None:
    """Give this rank's counts, and those of its channels' rows, to its rail's rank on a node."""
    node, channel = p.rank // p.ranks_per_node, 2 * p.num_sms * p.channel_warps
    into = p.counts + counts_of(p, fresh, p.rank)
    isa.put_bytes(
        mate_on(p.rank, other, p.ranks_per_node), into, p.own_counts_addr, p.counts_bytes, channel
    )
    rows = p.node_counts_addr + other * p.channels_bytes
    into = p.incoming + ((fresh & 1) * p.num_nodes + node) * p.channels_bytes
    isa.put_bytes(mate_on(p.rank, other, p.ranks_per_node), into, rows, p.channels_bytes, channel)
    isa.put_signal(mate_on(p.rank, other, p.ranks_per_node), p.rail_hello + 8 * node, 1, channel)


def counts_of(p: DispatchParams, fresh: int, source: int) -> int:
    """Return where a rank's counts of an epoch are, counted from `counts`."""
    return ((fresh & 1) * p.world_size + source) * p.counts_bytes


def learn_places(p: DispatchParams, sm: int, warp: int, fresh: int) -> None:
    """Learn what this warp needs to know: its channel's rows, or what its streams will bring."""
    node = p.rank // p.ranks_per_node
    num_channels = p.num_sms * p.channel_warps
    counts_addr = p.counts_addr + (fresh & 1) * p.world_size * p.counts_bytes
    if warp < 2 * p.channel_warps:
        channel = sm * p.channel_warps + warp % p.channel_warps
        user = channel if warp < p.channel_warps else num_channels + channel
        cursor = p.cursors_addr + user * p.counts_bytes
        counts = Matrix(counts_addr, p.world_size, p.counts_bytes)
        workers = Matrix(p.worker_counts_addr, p.world_size, p.counts_bytes)
        isa.sum_rows(counts, p.rank, 0, cursor)
        isa.sum_rows(workers, channel, cursor, cursor)
        if user == channel:
            stream = relative(node, node, p.num_nodes) * num_channels + channel
            rows = p.node_counts_addr + node * p.channels_bytes + 4 * channel
            isa.store_i32(p.expected_addr + 4 * stream, isa.load_i32(rows))
    else:
        # A forwarder learns what its own streams will bring.
        forwarder = sm * p.forward_warps + warp - 2 * p.channel_warps
        incoming = p.incoming_addr + (fresh & 1) * p.num_nodes * p.channels_bytes
        for stream in range(forwarder, p.num_remote_streams, p.num_forwarders):
            other = node_at(node, stream // num_channels, p.num_nodes)
            rows = incoming + other * p.channels_bytes + 4 * (stream % num_channels)
            isa.store_i32(p.expected_addr + 4 * stream, isa.load_i32(rows))
    if sm == 0:
        for source in range(warp, p.world_size, p.num_warps):
            count = isa.load_i32(counts_addr + source * p.counts_bytes + 4 * p.rank)
            isa.store_i32(p.recv_counts_addr + 4 * source, count)
