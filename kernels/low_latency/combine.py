"""`low_latency` combine: each row goes back to its slot at its source, which adds it there.

Grid: as in dispatch: `num_sms` blocks whose first `send_warps` warps send while the others reduce,
or `combine_send` and `combine_recv` apart. Rows, streams and their words are numbered as in
`streams.py`, with the numbers that the last dispatch gave them: row g of source s is
`back_rows[s][g]` of `y` and goes to `combine_slots[buffer][back_slots[s][g]]` of s, slot token *
num_topk + k.

Send: the warp that has a stream sends its rows, in the order of the source's tokens; after every
`near_batch` or `far_batch` rows, and at the end of every stream, it adds to the stream's word,
`returned[rank][part]` of the source (release; by the network a signal of channel sm).

Reduce: each block takes tokens sm, sm + num_sms, ... The warps of its team wait for the rows of the
token's selections, one selection each (`send_index` tells its g), meet (`group_sync`), and each
adds a part of the columns of all rows, in ascending k, times `topk_weights`. At the end the team
has seen the end of every stream.

It cannot deadlock: senders wait for nothing, and reducers wait for senders only.

Two buffers, by the epoch's parity, are enough: a rank writes buffer e % 2 of a source again in
epoch e + 2, which it enters after it has seen the end of every stream of epoch e + 1. Every rank
has a stream to every other, so the source has sent one in its epoch e + 1, which it entered after
its epoch e had ended and with it all its reads of the buffer. That is so whatever runs between. The
kernel, apart `combine_recv`, ends when the rank's own puts have completed: from then on `y` may be
overwritten.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node
from kernels.isa import Part, RowList
from kernels.low_latency.streams import (
    EPOCH,
    Cut,
    Stream,
    Team,
    num_streams,
    parts_between,
    stream_at,
    team_of,
)

SENDING, REDUCING, ENDING = range(4, 7)


class CombineParams(NamedTuple):
    """Parameters of all combine kernels; fields named after regions are offsets."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_sms: int
    num_warps: int
    send_warps: int
    near_parts: int
    far_parts: int
    num_parts: int
    near_batch: int
    far_batch: int
    num_tokens: int
    max_tokens: int
    num_topk: int
    experts_per_rank: int
    peer_rows: int
    totals_bytes: int
    y_row_bytes: int
    y_addr: int
    out_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    combine_epoch: int
    totals_addr: int
    send_index_addr: int
    back_rows_addr: int
    back_slots_addr: int
    sums_addr: int
    combine_slots: int
    returned: int


def combine(p: CombineParams) -> None:
    """Send by some warps of each block and reduce by the others."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    if warp < p.send_warps:
        send_rows(p, team_of(sm, p.num_sms, warp, p.send_warps), epoch)
    else:
        reduce(p, team_of(sm, p.num_sms, warp - p.send_warps, p.num_warps - p.send_warps), epoch)
    end(p, epoch)


def combine_send(p: CombineParams) -> None:
    """Send by all warps."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    send_rows(p, team_of(sm, p.num_sms, warp, p.num_warps), epoch)


def combine_recv(p: CombineParams) -> None:
    """Reduce by all warps what `combine_send` of every rank has sent."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    reduce(p, team_of(sm, p.num_sms, warp, p.num_warps), epoch)
    end(p, epoch)


def cut_of(p: CombineParams) -> Cut:
    """Return how this rank's peers are cut into streams."""
    return Cut(p.rank, p.world_size, p.ranks_per_node, p.near_parts, p.far_parts)


def first_slot(p: CombineParams, epoch: int) -> int:
    """Return the offset of the first slot of an epoch."""
    return p.combine_slots + (epoch & 1) * p.max_tokens * p.num_topk * p.y_row_bytes


def send_rows(p: CombineParams, team: Team, epoch: int) -> None:
    """Send this warp's streams."""
    isa.mark(SENDING)
    cut = cut_of(p)
    for index in range(team.worker, num_streams(cut), team.num_workers):
        send_stream(p, stream_at(cut, index), epoch)


def send_stream(p: CombineParams, stream: Stream, epoch: int) -> None:
    """Send a stream's rows back to their source."""
    peer, channel = stream.peer, isa.sm_id()
    near = is_same_node(p.rank, peer, p.ranks_per_node)
    batch = p.near_batch if near else p.far_batch
    slots = first_slot(p, epoch)
    flag = p.returned + 8 * (p.rank * p.num_parts + stream.part)
    count = isa.load_i32(p.totals_addr + isa.sm_id() * p.totals_bytes + 4 * peer)
    said = 0
    for sent, row in enumerate(range(stream.part, count, stream.num_parts)):
        if sent - said == batch:
            add_sent(near, peer, flag, sent - said)
            said = sent
        back = peer * p.peer_rows + row
        y_addr = p.y_addr + isa.load_i32(p.back_rows_addr + 4 * back) * p.y_row_bytes
        into = slots + isa.load_i32(p.back_slots_addr + 4 * back) * p.y_row_bytes
        if near:
            isa.copy_row_bulk(peer, into, y_addr, p.y_row_bytes)
        else:
            isa.put_row(peer, into, y_addr, p.y_row_bytes, channel)
    add_sent(near, peer, flag, EPOCH - said)


def add_sent(near: int, peer: int, flag: int, value: int) -> None:
    """Add to a stream's word after the rows that this warp has sent."""
    if near:
        isa.fence_release()
        isa.add(peer, flag, value)
    else:
        isa.put_signal(peer, flag, value, isa.sm_id())


def reduce(p: CombineParams, team: Team, epoch: int) -> None:
    """Sum the rows of this block's tokens as they come back."""
    isa.mark(REDUCING)
    cut = cut_of(p)
    for token in range(isa.sm_id(), p.num_tokens, p.num_sms):
        for k in range(team.member, p.num_topk, team.size):
            await_selection(p, cut, token * p.num_topk + k, epoch)
        isa.group_sync(1, team.size)
        reduce_token(p, team, token, epoch)
    for source in range(team.worker, p.world_size, team.num_workers):
        parts = parts_between(cut, source)
        isa.wait_all(p.returned + 8 * source * p.num_parts, 8, parts, epoch * EPOCH)


def await_selection(p: CombineParams, cut: Cut, slot: int, epoch: int) -> None:
    """Wait until the row of a selection is back."""
    expert = isa.load_i32(p.topk_idx_addr + 4 * slot)
    if expert >= 0:
        owner, row = expert // p.experts_per_rank, isa.load_i32(p.send_index_addr + 4 * slot)
        parts = parts_between(cut, owner)
        flag = p.returned + 8 * (owner * p.num_parts + row % parts)
        isa.wait_ge(flag, (epoch - 1) * EPOCH + row // parts + 1)


def reduce_token(p: CombineParams, team: Team, token: int, epoch: int) -> None:
    """Sum this warp's part of the columns of a token's rows."""
    slots = p.sums_addr + 8 * p.num_topk * team.worker
    weights = slots + 4 * p.num_topk
    first = token * p.num_topk
    count = 0
    for k in range(p.num_topk):
        if isa.load_i32(p.topk_idx_addr + 4 * (first + k)) >= 0:
            isa.store_i32(slots + 4 * count, first + k)
            weight = isa.load_i32(p.topk_weights_addr + 4 * (first + k))
            isa.store_i32(weights + 4 * count, weight)
            count += 1
    isa.reduce_columns_weighted(
        p.out_addr + token * p.y_row_bytes,
        RowList(count, 0, slots, first_slot(p, epoch), p.y_row_bytes),
        weights,
        Part(team.member, team.size),
    )


def end(p: CombineParams, epoch: int) -> None:
    """End an epoch, when the block's warps are done and the puts of its channel have completed."""
    isa.mark(ENDING)
    isa.block_sync()
    if isa.warp_id() == 0:
        isa.store(p.rank, p.combine_epoch + 8 * isa.sm_id(), epoch)
        if p.world_size > p.ranks_per_node:
            isa.put_wait(isa.sm_id())
