"""`direct` combine by push: each rank sends rows back to their sources, which add them.

Grid: `num_sms` blocks; in each the first `push_warps` warps push and the others reduce. The rows
that this rank holds of a source s are cut into chunks of `chunk_rows`, and pusher m = sm *
push_warps + warp takes chunks m, m + M, ... (M pushers), so that rows arrive everywhere in about
the order of the source's tokens; reducers take tokens in the same way. Rows land in `stage` of s,
ordered by (rank that held them, source token), so a token's rows have fixed slots there.

Block 0 adds 1 to `ready[rank]` of every rank (release): the `stage` of this rank is free. Pushers
acquire `ready[s]` before they first write to s. After every chunk a pusher adds 1 to
`progress[rank][m]` of s (release; by the network a signal of channel m); its last add of an epoch
makes up 2^32, so an epoch starts at (epoch - 1) * 2^32 whatever the routing was. Reducers acquire
the `progress` of each row they need, add in ascending order of ranks and write `out`. Each block
then adds 1 to `taken` of every rank (release; word 0 from its own node, word 1 from others, since a
NIC's adds are not atomic with a GPU's); block 0 acquires both, num_sms an epoch from each rank: all
pushes have been received, `y` may be overwritten.

It cannot deadlock: `ready` is sent before anything is waited for; pushers wait for `ready` only;
reducers wait for pushers only, which are resident at the same time; `taken` is waited for last.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node, signal
from kernels.isa import RowList

WAITING, REDUCING, ENDING, PUSHING = range(4, 8)
EPOCH = 1 << 32


class PushParams(NamedTuple):
    """Parameters of `combine_push`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_sms: int
    num_warps: int
    push_warps: int
    chunk_rows: int
    num_tokens: int
    num_copies: int
    y_row_bytes: int
    counts_row_bytes: int
    y_addr: int
    out_addr: int
    counts_addr: int
    send_num_addr: int
    send_ranks_addr: int
    send_rows_addr: int
    bases_addr: int
    slots_addr: int
    stage: int
    progress: int
    combine_epoch: int
    ready: int
    taken: int


def combine_push(p: PushParams) -> None:
    """Send rows back to their sources and sum what arrives for the own tokens."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    if sm == 0:
        isa.fence_release()
        for peer in range(warp, p.world_size, p.num_warps):
            signal(p.rank, peer, p.ranks_per_node, p.ready + 8 * p.rank, 1, 0)
    if warp < p.push_warps:
        isa.mark(PUSHING)
        push_rows(p, sm * p.push_warps + warp, epoch)
    else:
        isa.mark(REDUCING)
        num_reducers = p.num_warps - p.push_warps
        reduce_tokens(p, sm * num_reducers + warp - p.push_warps, p.num_sms * num_reducers, epoch)

    isa.mark(ENDING)
    isa.block_sync()
    isa.fence_release()
    for peer in range(warp, p.world_size, p.num_warps):
        flag = p.taken + 8 * (1 - is_same_node(p.rank, peer, p.ranks_per_node))
        signal(p.rank, peer, p.ranks_per_node, flag, 1, sm)
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.taken, epoch * p.ranks_per_node * p.num_sms)
            if p.world_size > p.ranks_per_node:
                num_far = p.world_size - p.ranks_per_node
                isa.wait_ge(p.taken + 8, epoch * num_far * p.num_sms)


def push_rows(p: PushParams, pusher: int, epoch: int) -> None:
    """Send this pusher's chunks of each source's rows, one chunk to each source in turn."""
    num_pushers = p.num_sms * p.push_warps
    num_left = p.world_size
    step = 0
    while num_left > 0:
        num_left = 0
        for turn in range(p.world_size):
            # Pushers start at different sources, so that all of a rank's links are busy at once.
            source = (p.rank + 1 + pusher + turn) % p.world_size
            if step == 0:
                isa.wait_ge(p.ready + 8 * source, epoch)
            row_counts = p.counts_addr + source * p.counts_row_bytes
            num_rows = isa.load_i32(row_counts + 4 * p.rank)
            first = (step * num_pushers + pusher) * p.chunk_rows
            if step > 0 and first >= num_rows:
                continue
            count = max(min(p.chunk_rows, num_rows - first), 0)
            slot = isa.load_i32(row_counts + 4 * (p.world_size + p.rank))
            row = isa.load_i32(p.bases_addr + 4 * source)
            send_chunk(p, source, RowSpan(row + first, slot + first, count), pusher)
            value = 1
            if first + num_pushers * p.chunk_rows < num_rows:
                num_left += 1
            else:
                value = EPOCH - step
            isa.fence_release()
            flag = p.progress + 8 * (p.rank * num_pushers + pusher)
            signal(p.rank, source, p.ranks_per_node, flag, value, pusher)
        step += 1


class RowSpan(NamedTuple):
    """Consecutive rows: the first in `y`, the first slot in `stage`, how many."""

    row: int
    slot: int
    num_rows: int


def send_chunk(p: PushParams, source: int, span: RowSpan, channel: int) -> None:
    """Write consecutive rows into consecutive slots of a source."""
    stage = p.stage + span.slot * p.y_row_bytes
    y_addr = p.y_addr + span.row * p.y_row_bytes
    if is_same_node(p.rank, source, p.ranks_per_node):
        for index in range(span.num_rows):
            at = index * p.y_row_bytes
            isa.copy_row(source, stage + at, y_addr + at, p.y_row_bytes)
    elif span.num_rows > 0:
        isa.put_row(source, stage, y_addr, span.num_rows * p.y_row_bytes, channel)


def reduce_tokens(p: PushParams, reducer: int, num_reducers: int, epoch: int) -> None:
    """Sum the rows of every `num_reducers`-th token as they arrive."""
    num_pushers = p.num_sms * p.push_warps
    slots = p.slots_addr + 4 * p.num_copies * reducer
    own_counts = p.counts_addr + p.rank * p.counts_row_bytes
    for token in range(reducer, p.num_tokens, num_reducers):
        at = 4 * p.num_copies * token
        num_rows = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_rows):
            peer = isa.load_i32(p.send_ranks_addr + at + 4 * index)
            row = isa.load_i32(p.send_rows_addr + at + 4 * index)
            place = row - isa.load_i32(p.bases_addr + 4 * (p.world_size + peer))
            chunk = place // p.chunk_rows
            flag = p.progress + 8 * (peer * num_pushers + chunk % num_pushers)
            isa.wait_ge(flag, (epoch - 1) * EPOCH + chunk // num_pushers + 1)
            isa.store_i32(
                slots + 4 * index, isa.load_i32(own_counts + 4 * (p.world_size + peer)) + place
            )
        isa.reduce_rows(
            p.out_addr + token * p.y_row_bytes, RowList(num_rows, 0, slots, p.stage, p.y_row_bytes)
        )
