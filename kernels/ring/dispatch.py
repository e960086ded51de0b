"""`ring` dispatch: senders fill rings at the receivers, receivers empty them into final places.

Grid: `num_sms` blocks, channels and streams as `kernels.ring.streams` says. A block divides its
warps among the ranks: group g of the even block sends to rank g, group g of the odd block receives
from rank g.

A sender's warps walk the channel's tokens with equal counters of rows; row i of a stream goes into
slot i % ring_rows, by warp i % (warps of the group): row, ids and weights side by side. Before a
chunk each warp acquires `head` of the stream until the ring has room for `chunk_rows`. After the
chunk's last row the group synchronises and its first warp stores `tail` at the receiver (release).
`send_head` keeps for each token and rank the row's position in its stream, or -1 - the position of
the next row for a rank that the token does not go to: combine returns rows by it.

A receiver's warps acquire `tail` up to the end of a row's chunk, copy the row to its final place
and, after `return_rows`, synchronise; the first warp then stores `head` at the sender. Relaxed, as
in DeepEP: by the letter of a memory model a release is missing, but the slots have been read, which
each warp's fence made sure of, and the sender reads nothing here, it only overwrites. DeepEP
returns whatever it has found in the ring; warps without shared memory agree on fixed batches
instead. DeepEP polls heads at the receiver; here a head lives at the rank that waits for it.

It cannot deadlock: streams do not wait for each other, and within one a receiver waits for rows
only that precede what its sender waits for. A sender that waits has released whole chunks, t rows,
and needs a head of t + chunk_rows - ring_rows; batches are whole chunks and at most ring_rows, so
that the receiver, which waits for released rows only, has returned more than t - return_rows, a
multiple of chunk_rows, hence enough. Sender and receiver blocks must be resident together.

Memory: the source of `copy_row` is free when it returns. `recv_x` is written by its own rank only.
A ring is used again after its head; the last head of an epoch says that all its rows are read.
"""

from typing import NamedTuple

from kernels import isa
from kernels.isa import TopkRow
from kernels.ring.streams import base_of, channel_begin, room_for, sync_group

SENDING, RECEIVING, ENDING = range(3, 6)


class DispatchParams(NamedTuple):
    """Parameters of `dispatch`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    chunk_rows: int
    ring_rows: int
    ring_slots: int
    return_rows: int
    x_row_bytes: int
    begins_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx_addr: int
    recv_topk_weights_addr: int
    begins_addr: int
    bases_addr: int
    send_head_addr: int
    dispatch_epoch: int
    ring: int
    ring_addr: int
    ring_idx: int
    ring_idx_addr: int
    ring_weights: int
    ring_weights_addr: int
    tail: int
    head: int


def dispatch(p: DispatchParams) -> None:
    """Send every token once to each rank that owns one of its experts, through rings."""
    sm, warp = isa.sm_id(), isa.warp_id()
    channel = sm // 2
    group_warps = p.num_warps // p.world_size
    group, member = warp // group_warps, warp % group_warps
    epoch = isa.load(p.dispatch_epoch + 8 * sm)
    if sm % 2 == 0:
        isa.mark(SENDING)
        send_rows(p, channel, group, member, base_of(epoch))
    else:
        isa.mark(RECEIVING)
        receive_rows(p, channel, group, member, epoch)
    isa.mark(ENDING)
    isa.block_sync()
    if warp == 0:
        isa.store(p.rank, p.dispatch_epoch + 8 * sm, epoch + 1)


def send_rows(p: DispatchParams, channel: int, dest: int, member: int, base: int) -> None:
    """Send a channel's rows for one rank; run by all warps of its group."""
    group_warps = p.num_warps // p.world_size
    head = p.head + 8 * (channel * p.world_size + dest)
    stream = channel * p.world_size + p.rank
    token = channel_begin(p.num_tokens, channel, p.num_sms)
    last = channel_begin(p.num_tokens, channel + 1, p.num_sms)
    num_sent = 0
    while token < last:
        isa.wait_ge(head, room_for(base, num_sent, p.chunk_rows, p.ring_rows))
        end = num_sent + p.chunk_rows
        begin = num_sent
        while num_sent < end and token < last:
            at = 4 * p.num_topk * token
            topk = TopkRow(
                p.topk_idx_addr + at,
                p.topk_weights_addr + at,
                p.num_topk,
                p.experts_per_rank,
                p.world_size,
            )
            position = -1 - num_sent
            if isa.rank_mask(topk, dest, 1) != 0:
                position = num_sent
                if num_sent % group_warps == member:
                    send_row(p, dest, stream * p.ring_slots + num_sent % p.ring_rows, token, topk)
                num_sent += 1
            if token % group_warps == member:
                isa.store_i32(p.send_head_addr + 4 * (token * p.world_size + dest), position)
            token += 1
        if num_sent > begin:
            sync_group(dest, group_warps)
            if member == 0:
                isa.store_release(dest, p.tail + 8 * stream, base + num_sent)


def send_row(p: DispatchParams, dest: int, slot: int, token: int, topk: TopkRow) -> None:
    """Write a token's row, ids and weights into a slot of a rank."""
    at = 4 * p.num_topk * slot
    isa.copy_topk(dest, p.ring_idx + at, p.ring_weights + at, topk)
    x_addr = p.x_addr + token * p.x_row_bytes
    isa.copy_row(dest, p.ring + slot * p.x_row_bytes, x_addr, p.x_row_bytes)


def receive_rows(p: DispatchParams, channel: int, source: int, member: int, epoch: int) -> None:
    """Copy one rank's rows of a channel to their places; run by all warps of its group."""
    group_warps = p.num_warps // p.world_size
    base = base_of(epoch)
    stream = channel * p.world_size + source
    begins = p.begins_addr + source * p.begins_bytes + 4 * channel
    begin = isa.load_i32(begins)
    num_rows = isa.load_i32(begins + 4) - begin
    place = isa.load_i32(p.bases_addr + 4 * source) + begin
    num_known = 0
    row = member
    batch_end = 0
    while batch_end < num_rows:
        batch_end = min(batch_end + p.return_rows, num_rows)
        while row < batch_end:
            if row >= num_known:
                chunk_end = min((row // p.chunk_rows + 1) * p.chunk_rows, num_rows)
                isa.wait_ge(p.tail + 8 * stream, base + chunk_end)
                num_known = isa.load_acquire(p.tail + 8 * stream) - base
            receive_row(p, stream * p.ring_slots + row % p.ring_rows, place + row)
            row += group_warps
        isa.fence_release()
        sync_group(source, group_warps)
        if member == 0 and batch_end < num_rows:
            isa.store(source, p.head + 8 * (channel * p.world_size + p.rank), base + batch_end)
    if member == 0:
        # Everything of this epoch is read: the next one begins with an empty ring.
        isa.store(source, p.head + 8 * (channel * p.world_size + p.rank), base_of(epoch + 1))


def receive_row(p: DispatchParams, slot: int, place: int) -> None:
    """Copy a row, its ids and weights from a slot to its final place."""
    at = 4 * p.num_topk
    # The sender has made ids local to this rank; to a rank 0 that owns as many they are too.
    topk = TopkRow(
        p.ring_idx_addr + at * slot,
        p.ring_weights_addr + at * slot,
        p.num_topk,
        p.experts_per_rank,
        1,
    )
    isa.localize_topk(
        0, p.recv_topk_idx_addr + at * place, p.recv_topk_weights_addr + at * place, topk
    )
    isa.copy_row_bulk(
        p.rank,
        p.recv_x + place * p.x_row_bytes,
        p.ring_addr + slot * p.x_row_bytes,
        p.x_row_bytes,
    )
