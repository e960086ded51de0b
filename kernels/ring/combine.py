"""`ring` combine: rows go back through rings to their tokens' ranks, which add them.

Grid: `num_sms` blocks, channels and streams as `kernels.ring.streams` says; a token comes back in
the channel that it was sent in, its rows in the order that they were sent in, so positions are
those that dispatch kept in `send_head`.

Even block: warps are divided among the tokens' ranks, rotated by channel, so that not everybody
sends to the same rank first. A group sends the rows of `y` that this rank received from a rank in
the channel. Before a chunk of `combine_chunk_rows` each warp acquires `back_head` of the stream
until the ring has room for it; after it the group synchronises and its first warp stores
`back_tail` at the token's rank (release).

Odd block: worker w of the warps 1 to num_warps - 1 takes every (num_warps - 1)-th token of the
channel. On coming to a token it stores the token's number into `entered[w]` (own rank, release: its
reads of earlier rows come before): all its earlier tokens are done. DeepEP's workers do without the
release. A worker acquires `back_tail` of each rank that the token went to, in ascending order, and
adds the rows out of the rings. Warp 0 takes the least of `entered`, the first token that is not
done; what `send_head` has for it is the first row of each stream that may still be needed, which it
stores into `back_head` at each sender (relaxed, as in dispatch: its workers have added the rows
before they said so). To wait for news it acquires `entered` of the worker whose token that is.
DeepEP's warp 0 mirrors tails in shared memory too; here a worker remembers the last tail it saw.

It cannot deadlock. Only the streams to one rank in one channel wait for each other. Take the first
of that channel's tokens that is not done: its worker has done the tokens before it and has come to
it, and every other worker is at a later one. So the least of `entered` is that token, and heads
become its positions. The sender of a row of it then has room for the row's chunk, which begins no
later than the row and is shorter than the ring, and releases it without waiting for anything else.
Blocks of all ranks must be resident together.

Memory: the source of `copy_row` is free when it returns, so `y` may be overwritten after the
kernel; `out` is written by its own rank. No barrier is needed, the rings are not dispatch's, and
the last head of an epoch says that all its rows are read.
"""

from typing import NamedTuple

from kernels import isa
from kernels.isa import RowList
from kernels.ring.streams import base_of, channel_begin, room_for, sync_group

SENDING, RETURNING, REDUCING, ENDING = range(6, 10)


class CombineParams(NamedTuple):
    """Parameters of `combine`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    num_tokens: int
    combine_chunk_rows: int
    combine_ring_rows: int
    back_slots: int
    y_row_bytes: int
    begins_bytes: int
    y_addr: int
    out_addr: int
    begins_addr: int
    bases_addr: int
    send_head_addr: int
    combine_epoch: int
    back: int
    back_tail: int
    back_head: int
    entered: int
    known_addr: int
    returned_addr: int
    slots_addr: int


def combine(p: CombineParams) -> None:
    """Send rows back to their tokens' ranks and add what comes back for the own tokens."""
    sm, warp = isa.sm_id(), isa.warp_id()
    channel = sm // 2
    epoch = isa.load(p.combine_epoch + 8 * sm)
    if sm % 2 == 0:
        isa.mark(SENDING)
        dest = (channel + warp) % p.world_size
        send_rows(p, channel, dest, warp // p.world_size, base_of(epoch))
    elif warp == 0:
        isa.mark(RETURNING)
        return_heads(p, channel, epoch)
    else:
        isa.mark(REDUCING)
        reduce_tokens(p, channel, warp - 1, epoch)
    isa.mark(ENDING)
    isa.block_sync()
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch + 1)


def send_rows(p: CombineParams, channel: int, dest: int, member: int, base: int) -> None:
    """Send back one rank's rows of a channel; run by all warps of its group."""
    group_warps = p.num_warps // p.world_size
    head = p.back_head + 8 * (channel * p.world_size + dest)
    stream = channel * p.world_size + p.rank
    begins = p.begins_addr + dest * p.begins_bytes + 4 * channel
    begin = isa.load_i32(begins)
    num_rows = isa.load_i32(begins + 4) - begin
    y_addr = p.y_addr + (isa.load_i32(p.bases_addr + 4 * dest) + begin) * p.y_row_bytes
    num_sent = 0
    while num_sent < num_rows:
        count = min(p.combine_chunk_rows, num_rows - num_sent)
        isa.wait_ge(head, room_for(base, num_sent, count, p.combine_ring_rows))
        for index in range(num_sent + member, num_sent + count, group_warps):
            slot = stream * p.back_slots + index % p.combine_ring_rows
            row_addr = y_addr + index * p.y_row_bytes
            isa.copy_row(dest, p.back + slot * p.y_row_bytes, row_addr, p.y_row_bytes)
        num_sent += count
        sync_group(dest, group_warps)
        if member == 0:
            isa.store_release(dest, p.back_tail + 8 * stream, base + num_sent)


def return_heads(p: CombineParams, channel: int, epoch: int) -> None:
    """Give rows back to their senders as the channel's tokens are done; run by one warp."""
    base = base_of(epoch)
    first = channel_begin(p.num_tokens, channel, p.num_sms)
    num_tokens = channel_begin(p.num_tokens, channel + 1, p.num_sms) - first
    num_workers = p.num_warps - 1
    entered = p.entered + 8 * channel * num_workers
    num_done = 0
    while num_done < num_tokens:
        isa.wait_ge(entered + 8 * (num_done % num_workers), base + num_done + 1)
        num_done = isa.min_words(entered, 8, num_workers) - base
        if num_done < num_tokens:
            positions = p.send_head_addr + 4 * (first + num_done) * p.world_size
            for peer in range(p.world_size):
                position = isa.load_i32(positions + 4 * peer)
                return_head(p, channel, peer, base + max(position, -1 - position))
    for peer in range(p.world_size):
        return_head(p, channel, peer, base_of(epoch + 1))


def return_head(p: CombineParams, channel: int, peer: int, head: int) -> None:
    """Store a stream's head at its sender where it has moved."""
    returned = p.returned_addr + 8 * (channel * p.world_size + peer)
    if isa.load_i64(returned) < head:
        isa.store_i64(returned, head)
        isa.store(peer, p.back_head + 8 * (channel * p.world_size + p.rank), head)


def reduce_tokens(p: CombineParams, channel: int, worker: int, epoch: int) -> None:
    """Add the rows of every `num_warps - 1`-th token of a channel as they come."""
    base = base_of(epoch)
    first = channel_begin(p.num_tokens, channel, p.num_sms)
    num_tokens = channel_begin(p.num_tokens, channel + 1, p.num_sms) - first
    num_workers = p.num_warps - 1
    index = channel * num_workers + worker
    known = p.known_addr + 8 * index * p.world_size
    slots = p.slots_addr + 4 * index * p.world_size
    for number in range(worker, num_tokens, num_workers):
        isa.store_release(p.rank, p.entered + 8 * index, base + number)
        token = first + number
        num_rows = 0
        for peer in range(p.world_size):
            position = isa.load_i32(p.send_head_addr + 4 * (token * p.world_size + peer))
            if position >= 0:
                stream = channel * p.world_size + peer
                if isa.load_i64(known + 8 * peer) <= base + position:
                    isa.wait_ge(p.back_tail + 8 * stream, base + position + 1)
                    isa.store_i64(known + 8 * peer, isa.load_acquire(p.back_tail + 8 * stream))
                slot = stream * p.back_slots + position % p.combine_ring_rows
                isa.store_i32(slots + 4 * num_rows, slot)
                num_rows += 1
        isa.warp_sync()
        isa.reduce_rows(
            p.out_addr + token * p.y_row_bytes, RowList(num_rows, 0, slots, p.back, p.y_row_bytes)
        )
    isa.store_release(p.rank, p.entered + 8 * index, base_of(epoch + 1))
