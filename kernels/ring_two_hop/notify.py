"""Before the rings of `ring_two_hop` move: who sends how much to whom, and a barrier.

`notify` (before dispatch), fresh. Grid: `num_sms` blocks of `num_warps` warps; worker w = sm *
num_warps + warp owns an even, contiguous share of the tokens, so the workers of blocks 2c and
2c + 1 own those of channel c. Each counts its tokens by rank and by node; each block sums its
workers' counts and adds 1 to `counted` (release). Every block acquires it and lists the nodes of
its tokens, and the place of each among the channel's tokens for that node: `send_*`, kept for
cached dispatches and for combine. Block 0 sums the counts, puts them to its rail peers, the ranks
of other nodes with this rank's local rank, and signals `hello[node]`. A peer acquires it, copies
the counts to the ranks of its node and adds 1 to its word of `relayed` there (release): N adds an
epoch for N nodes. Block 0 acquires all words of `relayed` and knows how many rows come from every
rank.

It is also the barrier that lets rings begin again at row 0: `hello` and `relayed` of an epoch are
sent when their rank's last kernel has ended, and whoever writes to this rank is on its rail or on
its node. `counts` are not overwritten before they are used: who writes them again has ended the
dispatch in between, for which every rank of its rail and node told it of its channels, after its
own `notify`. Cached, and in `combine_notify`, nothing is counted, and the flags are raised without
waiting for the rail in between.

It cannot deadlock: `counted` and `hello` are sent before anything of another rank is waited for,
`relayed` after waiting for `hello` only. Blocks must be resident together.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import Matrix, TopkRow

COUNTING, EXCHANGING = range(2)


class NotifyParams(NamedTuple):
    """Parameters of `notify` and `combine_notify`."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    num_copies: int
    cached: int
    counts_bytes: int
    world_counts_bytes: int
    topk_idx_addr: int
    recv_counts_addr: int
    barrier_epoch: int
    dispatch_epoch: int
    combine_epoch: int
    hello: int
    relayed: int
    counted: int
    worker_counts_addr: int
    block_counts_addr: int
    own_counts_addr: int
    counts: int
    counts_addr: int
    bases_addr: int
    send_num_addr: int
    send_nodes_addr: int
    send_slots_addr: int
    scratch_addr: int
    scratch_bytes: int


def notify(p: NotifyParams) -> None:
    """Count and list this rank's tokens, learn the others' counts, meet rail and node."""
    sm, warp = isa.sm_id(), isa.warp_id()
    isa.mark(COUNTING)
    epoch = isa.load(p.dispatch_epoch) + 1
    if not p.cached:
        count_tokens(p, sm, warp)
    isa.block_sync()
    if warp == 0:
        isa.fence_release()
        isa.add(p.rank, p.counted, 1)
    isa.wait_ge(p.counted, epoch * p.num_sms)
    if sm == 0:
        isa.mark(EXCHANGING)
        if not p.cached and warp == 0:
            blocks = Matrix(p.block_counts_addr, p.world_size + p.num_nodes, p.counts_bytes)
            isa.sum_rows(blocks, p.num_sms, 0, p.own_counts_addr)
        isa.block_sync()
        tell_rail(p, warp, 1 - p.cached)
    if not p.cached:
        list_tokens(p, sm, warp)
    if sm == 0:
        meet(p, warp, 1 - p.cached)
        if warp == 0:
            if not p.cached:
                write_bases(p)
            isa.store(p.rank, p.dispatch_epoch, epoch)


def combine_notify(p: NotifyParams) -> None:
    """Meet rail and node, so that the rings of combine may start again."""
    warp = isa.warp_id()
    if isa.sm_id() == 0:
        isa.mark(EXCHANGING)
        tell_rail(p, warp, 0)
        meet(p, warp, 0)
        if warp == 0:
            isa.store(p.rank, p.combine_epoch, isa.load(p.combine_epoch) + 1)


def worker_share(p: NotifyParams, sm: int, warp: int) -> tuple[int, int]:
    """Return a worker's first token and the first after its last."""
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    return (
        share_begin(p.num_tokens, worker, num_workers),
        share_begin(p.num_tokens, worker + 1, num_workers),
    )


def topk_row(p: NotifyParams, token: int) -> TopkRow:
    """Return a token's selections, by rank."""
    at = p.topk_idx_addr + 4 * p.num_topk * token
    return TopkRow(at, 0, p.num_topk, p.experts_per_rank, p.world_size)


def topk_by_node(p: NotifyParams, token: int) -> TopkRow:
    """Return a token's selections as if a node were one rank."""
    at = p.topk_idx_addr + 4 * p.num_topk * token
    return TopkRow(at, 0, p.num_topk, p.experts_per_rank * p.ranks_per_node, p.num_nodes)


def count_tokens(p: NotifyParams, sm: int, warp: int) -> None:
    """Count a worker's tokens by rank, then by node, and add up the block's."""
    first, last = worker_share(p, sm, warp)
    row = p.worker_counts_addr + (sm * p.num_warps + warp) * p.counts_bytes
    isa.count_ranks(topk_row(p, first), last - first, row)
    isa.count_ranks(topk_by_node(p, first), last - first, row + 4 * p.world_size)
    isa.block_sync()
    if warp == 0:
        workers = Matrix(row, p.world_size + p.num_nodes, p.counts_bytes)
        isa.sum_rows(workers, p.num_warps, 0, p.block_counts_addr + sm * p.counts_bytes)


def list_tokens(p: NotifyParams, sm: int, warp: int) -> None:
    """List the nodes of a worker's tokens and their places among those of the channel."""
    first, last = worker_share(p, sm, warp)
    worker = sm * p.num_warps + warp
    channel_worker = sm // 2 * 2 * p.num_warps
    rows = p.worker_counts_addr + channel_worker * p.counts_bytes + 4 * p.world_size
    cursor = p.scratch_addr + worker * p.scratch_bytes
    before = Matrix(rows, p.num_nodes, p.counts_bytes)
    isa.sum_rows(before, worker - channel_worker, 0, cursor)
    for token in range(first, last):
        at = 4 * p.num_copies * token
        num_nodes = isa.route(
            topk_by_node(p, token), cursor, p.send_nodes_addr + at, p.send_slots_addr + at
        )
        isa.store_i32(p.send_num_addr + 4 * token, num_nodes)


def tell_rail(p: NotifyParams, warp: int, with_counts: int) -> None:
    """Say hello to the ranks of other nodes on this rank's rail."""
    node, local = p.rank // p.ranks_per_node, p.rank % p.ranks_per_node
    for other in range(warp, p.num_nodes, p.num_warps):
        if other != node:
            peer = other * p.ranks_per_node + local
            if with_counts:
                row = p.counts + p.rank * p.world_counts_bytes
                isa.put_bytes(peer, row, p.own_counts_addr, p.world_counts_bytes, 0)
            isa.put_signal(peer, p.hello + 8 * node, 1, 0)


def meet(p: NotifyParams, warp: int, with_counts: int) -> None:
    """Wait for rail and node, passing on the rail's counts; run by all warps of block 0."""
    node, local = p.rank // p.ranks_per_node, p.rank % p.ranks_per_node
    epoch = isa.load(p.barrier_epoch) + 1
    for turn in range(warp, p.num_nodes * p.ranks_per_node, p.num_warps):
        # The own node's counts are here, those of others come.
        other = (node + turn // p.ranks_per_node) % p.num_nodes
        mate = node * p.ranks_per_node + (local + turn) % p.ranks_per_node
        if with_counts:
            source = other * p.ranks_per_node + local
            row = p.own_counts_addr
            if other != node:
                isa.wait_ge(p.hello + 8 * other, epoch)
                row = p.counts_addr + source * p.world_counts_bytes
            if other == node or mate != p.rank:
                into = p.counts + source * p.world_counts_bytes
                isa.copy_bytes(mate, into, row, p.world_counts_bytes)
            isa.fence_release()
        isa.add(mate, p.relayed + 8 * local, 1)
    for other in range(warp, p.num_nodes, p.num_warps):
        if other != node:
            isa.wait_ge(p.hello + 8 * other, epoch)
    isa.block_sync()
    if warp == 0:
        isa.wait_all(p.relayed, 8, p.ranks_per_node, epoch * p.num_nodes)
        isa.store(p.rank, p.barrier_epoch, epoch)


def write_bases(p: NotifyParams) -> None:
    """Write `recv_counts`, and where the rows of each source begin."""
    begin = 0
    for source in range(p.world_size):
        count = isa.load_i32(p.counts_addr + source * p.world_counts_bytes + 4 * p.rank)
        isa.store_i32(p.recv_counts_addr + 4 * source, count)
        isa.store_i32(p.bases_addr + 4 * source, begin)
        begin += count
