"""`direct` dispatch: one hop, each row written once, into its final place at its destination.

Grid: `num_sms` blocks of `num_warps` warps; all of them send. Worker w = sm * num_warps + warp owns
an even, contiguous share of the rank's tokens.

Fresh: each worker counts its tokens by destination and its block adds 1 to `counted` (own rank).
Block 0 waits for `counted`, sums the workers' counts, writes the sums and where this rank's rows
begin in a peer's order of ranks to `counts[rank]` of every rank, then adds 1 to `hello[rank]` there
(release). `hello[s]` says two things: the counts of rank s are here, and rank s has entered this
epoch, so whoever used its `recv_x` before is done (a grant). Every block acquires `hello` of all
ranks. A worker's first row at rank d is then the sum of `counts[s][d]` of the ranks s below its own
and of the counts of the workers before it, so all rows of all ranks have their places. Cached:
places are read from the last fresh run's `send_*`; `hello` is the grant alone.

Each block ends by adding 1 to `done` of every rank (release; by the network a signal of channel sm
covers that block's puts): to word 0 from its own node, to word 1 from others, since a NIC's adds
are not atomic with a GPU's. Block 0 acquires both words of its own rank, num_sms an epoch from each
rank: all rows are here. Every block waits until its own puts have completed, so that `x` may be
overwritten when the kernel ends.

To another node a row is put by itself; the ids and weights of a worker's rows at a rank lie
together and are put together, from `stage_*`, when the worker has sent its rows.

It cannot deadlock: `counted` is added before anything is waited for; `hello` is sent after waiting
for `counted` of the own rank only; `done` is sent after waiting for `hello` only. Blocks must be
resident together. Memory is not reused early: a peer writes `counts` again only after it has
acquired `done`, which every block of this rank adds after it has read them.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node, share_begin, signal
from kernels.isa import Matrix, TopkRow

COUNTING, EXCHANGING, SENDING, ENDING = range(4)


class DispatchParams(NamedTuple):
    """Parameters of `dispatch`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    num_copies: int
    cached: int
    x_row_bytes: int
    counts_row_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx: int
    recv_topk_weights: int
    recv_counts_addr: int
    counts: int
    counts_addr: int
    own_counts_addr: int
    worker_counts_addr: int
    starts_addr: int
    cursors_addr: int
    stage_begins_addr: int
    bases_addr: int
    send_num_addr: int
    send_ranks_addr: int
    send_rows_addr: int
    stage_idx_addr: int
    stage_weights_addr: int
    dispatch_epoch: int
    counted: int
    hello: int
    done: int


def dispatch(p: DispatchParams) -> None:
    """Send every token to each rank that owns one of its experts."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    first = share_begin(p.num_tokens, worker, num_workers)
    last = share_begin(p.num_tokens, worker + 1, num_workers)

    isa.mark(COUNTING)
    if not p.cached:
        isa.count_ranks(
            topk_row(p, first), last - first, p.worker_counts_addr + worker * p.counts_row_bytes
        )
    isa.block_sync()
    if warp == 0:
        isa.fence_release()
        isa.add(p.rank, p.counted, 1)
    isa.mark(EXCHANGING)
    if sm == 0:
        say_hello(p, warp, epoch)
    for source in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.hello + 8 * source, epoch)
    isa.block_sync()
    if sm == 0 and warp == 0:
        write_bases(p)

    isa.mark(SENDING)
    row = worker * p.counts_row_bytes
    share = Share(
        first, last, p.starts_addr + row, p.cursors_addr + row, p.stage_begins_addr + row, sm
    )
    if not p.cached:
        workers = Matrix(p.worker_counts_addr, p.world_size, p.counts_row_bytes)
        counts = Matrix(p.counts_addr, p.world_size, p.counts_row_bytes)
        isa.sum_rows(counts, p.rank, 0, share.starts)
        isa.sum_rows(workers, worker, share.starts, share.starts)
        isa.sum_rows(workers, 0, share.starts, share.cursor)
        isa.scan(p.worker_counts_addr + row, p.world_size, share.stage_begins)
    for token in range(first, last):
        send_token(p, token, share)
    if p.world_size > p.ranks_per_node:
        put_topk(p, share)

    isa.mark(ENDING)
    isa.block_sync()
    isa.fence_release()
    for peer in range(warp, p.world_size, p.num_warps):
        flag = p.done + 8 * (1 - is_same_node(p.rank, peer, p.ranks_per_node))
        signal(p.rank, peer, p.ranks_per_node, flag, 1, sm)
    if warp == 0:
        isa.store(p.rank, p.dispatch_epoch + 8 * sm, epoch)
        if p.world_size > p.ranks_per_node:
            isa.put_wait(sm)
        if sm == 0:
            isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)
            if p.world_size > p.ranks_per_node:
                num_far = p.world_size - p.ranks_per_node
                isa.wait_ge(p.done + 8, epoch * num_far * p.num_sms)


def topk_row(p: DispatchParams, token: int) -> TopkRow:
    """Return a token's selections."""
    at = 4 * p.num_topk * token
    return TopkRow(
        p.topk_idx_addr + at, p.topk_weights_addr + at, p.num_topk, p.experts_per_rank, p.world_size
    )


def say_hello(p: DispatchParams, warp: int, epoch: int) -> None:
    """Give every rank this rank's counts and its grant; run by all warps of block 0."""
    if not p.cached:
        if warp == 0:
            isa.wait_ge(p.counted, epoch * p.num_sms)
            workers = Matrix(p.worker_counts_addr, p.world_size, p.counts_row_bytes)
            isa.sum_rows(workers, p.num_sms * p.num_warps, 0, p.own_counts_addr)
            begins = p.own_counts_addr + 4 * p.world_size
            isa.scan(p.own_counts_addr, p.world_size, begins)
        isa.block_sync()
        for peer in range(warp, p.world_size, p.num_warps):
            row = p.counts + p.rank * p.counts_row_bytes
            if is_same_node(p.rank, peer, p.ranks_per_node):
                isa.copy_bytes(peer, row, p.own_counts_addr, p.counts_row_bytes)
            else:
                isa.put_bytes(peer, row, p.own_counts_addr, p.counts_row_bytes, 0)
    isa.fence_release()
    for peer in range(warp, p.world_size, p.num_warps):
        signal(p.rank, peer, p.ranks_per_node, p.hello + 8 * p.rank, 1, 0)


def write_bases(p: DispatchParams) -> None:
    """Write `recv_counts`, and where each source's rows begin here and ours at each peer."""
    begin = 0
    for source in range(p.world_size):
        count = isa.load_i32(p.counts_addr + source * p.counts_row_bytes + 4 * p.rank)
        isa.store_i32(p.recv_counts_addr + 4 * source, count)
        isa.store_i32(p.bases_addr + 4 * source, begin)
        begin += count
    counts = Matrix(p.counts_addr, p.world_size, p.counts_row_bytes)
    isa.sum_rows(counts, p.rank, 0, p.bases_addr + 4 * p.world_size)


class Share(NamedTuple):
    """A worker's share: its tokens, and local addresses of its int32 tables by destination rank.

    `starts` holds its first row at each rank, `cursor` its next, `stage_begins` the first of
    its staged selections.
    """

    first: int
    last: int
    starts: int
    cursor: int
    stage_begins: int
    channel: int


def send_token(p: DispatchParams, token: int, share: Share) -> None:
    """Send a token's row, ids and weights to each of its ranks; by the network only its row."""
    ranks = p.send_ranks_addr + 4 * p.num_copies * token
    rows = p.send_rows_addr + 4 * p.num_copies * token
    topk = topk_row(p, token)
    if p.cached:
        num_ranks = isa.load_i32(p.send_num_addr + 4 * token)
    else:
        num_ranks = isa.route(topk, share.cursor, ranks, rows)
        isa.store_i32(p.send_num_addr + 4 * token, num_ranks)
    for step in range(num_ranks):
        # Ranks and tokens start at different peers, so that no peer is everybody's first.
        index = (step + p.rank + token) % num_ranks
        peer = isa.load_i32(ranks + 4 * index)
        row = isa.load_i32(rows + 4 * index)
        x_addr = p.x_addr + token * p.x_row_bytes
        if is_same_node(p.rank, peer, p.ranks_per_node):
            at = 4 * p.num_topk * row
            isa.copy_topk(peer, p.recv_topk_idx + at, p.recv_topk_weights + at, topk)
            isa.copy_row(peer, p.recv_x + row * p.x_row_bytes, x_addr, p.x_row_bytes)
        else:
            at = (
                4
                * p.num_topk
                * (staged(p, share, peer) + row - isa.load_i32(share.starts + 4 * peer))
            )
            isa.localize_topk(peer, p.stage_idx_addr + at, p.stage_weights_addr + at, topk)
            isa.put_row(peer, p.recv_x + row * p.x_row_bytes, x_addr, p.x_row_bytes, share.channel)


def staged(p: DispatchParams, share: Share, peer: int) -> int:
    """Return the place in `stage_idx` of a worker's first selections for a rank."""
    return p.num_copies * share.first + isa.load_i32(share.stage_begins + 4 * peer)


def put_topk(p: DispatchParams, share: Share) -> None:
    """Put the ids and weights of a worker's rows on other nodes, together for each rank."""
    for turn in range(p.world_size):
        peer = (p.rank + 1 + turn) % p.world_size
        start = isa.load_i32(share.starts + 4 * peer)
        count = isa.load_i32(share.cursor + 4 * peer) - start
        if count > 0 and not is_same_node(p.rank, peer, p.ranks_per_node):
            num_bytes = 4 * p.num_topk * count
            into = 4 * p.num_topk * start
            at = 4 * p.num_topk * staged(p, share, peer)
            isa.put_bytes(
                peer, p.recv_topk_idx + into, p.stage_idx_addr + at, num_bytes, share.channel
            )
            weights = p.stage_weights_addr + at
            isa.put_bytes(peer, p.recv_topk_weights + into, weights, num_bytes, share.channel)
