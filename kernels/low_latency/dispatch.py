"""`low_latency` dispatch: one message per (token, expert) into fixed slots, counts beside the rows.

Grid: `num_sms` blocks. In the fused launch the first `send_warps` warps of a block send and the
others receive; launched apart, `dispatch_send` and `dispatch_recv` give all their warps to one
half. Rows, streams and their words are numbered as in `streams.py`. A rank has for each source s:

- `slots[buffer][s][g]`, `slot_entries[buffer][s][g]`: row g and its entry: int32 token * num_topk +
  k, float32 weight, int32 local expert, int32 number of earlier rows of s for that expert.
- `counted[buffer][le][s]`: uses * 2^32 + rows of s for local expert le, where uses counts the
  epochs that the buffer was used in. Its sender adds the difference to what it had sent
  (`sent_counts`).
- `arrived[s][part]`: the word of a stream from s.

Send: the warp that has a stream lists what its peer owns (`select_rank`), so places need neither
atomics nor a word from the peer, and sends its rows and their entries; after every `near_batch` or
`far_batch` rows, and at the end of every stream, it adds to `arrived` (release; by the network a
signal of channel sm). To another node the entries of a peer that has one stream are one message,
before the rows, otherwise each row's is one before it. Where each
selection went is kept for combine in `send_index`. Receivers first send `counted` to every rank (by
a channel of their own, so that no row is before it), then wait for those of all: their scan
(`begins`, a table for each block) says where the rows of (le, s) lie in `recv_x`, which is ordered
by (le, source, token). Each takes every `recv_parts`-th row of a source, one source in turn after
the other; it waits for the row in `arrived`, copies it to its place, and keeps in `back_rows` and
`back_slots` where it goes back from and to.

It cannot deadlock: senders wait for nothing; receivers wait for `counted`, which receivers send
before they wait, and for `arrived`. Launched apart, `dispatch_send` sends both. Blocks must be
resident together.

Two buffers, by the epoch's parity, are enough, without a barrier. A rank writes buffer e % 2 of a
peer again in epoch e + 2, which it enters after it has waited for `counted` of epoch e + 1 of every
rank, also of those that send it nothing. The peer has sent that in its epoch e + 1, which it
entered after its epoch e had ended and with it all its reads of the buffer. That is so whatever
runs between: combine uses other memory. `arrived` is only compared by >=, and needs no buffers: a
stream ends an epoch before it begins the next. The kernel, apart `dispatch_recv`, ends when the
rank's own puts have completed: from then on `x` may be overwritten.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node, signal
from kernels.isa import Selected, TopkRow
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

SENDING, COUNTING, RECEIVING, ENDING = range(4)
#: Bytes of an entry.
ENTRY = 16


class DispatchParams(NamedTuple):
    """Parameters of all dispatch kernels; fields named after regions are offsets."""

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
    num_topk: int
    experts_per_rank: int
    peer_rows: int
    begins_bytes: int
    totals_bytes: int
    counts_bytes: int
    x_row_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx_addr: int
    recv_topk_weights_addr: int
    recv_counts_addr: int
    dispatch_epoch: int
    entries_addr: int
    counts_addr: int
    sent_counts_addr: int
    send_index_addr: int
    counted: int
    arrived: int
    slots: int
    slots_addr: int
    slot_entries: int
    slot_entries_addr: int
    begins_addr: int
    totals_addr: int
    back_rows_addr: int
    back_slots_addr: int


def dispatch(p: DispatchParams) -> None:
    """Send by some warps of each block and receive by the others."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    if warp < p.send_warps:
        send_rows(p, team_of(sm, p.num_sms, warp, p.send_warps), epoch)
    else:
        team = team_of(sm, p.num_sms, warp - p.send_warps, p.num_warps - p.send_warps)
        send_counts(p, team, epoch)
        receive(p, team, epoch)
    end(p, epoch)


def dispatch_send(p: DispatchParams) -> None:
    """Send by all warps."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    team = team_of(sm, p.num_sms, warp, p.num_warps)
    send_rows(p, team, epoch)
    send_counts(p, team, epoch)


def dispatch_recv(p: DispatchParams) -> None:
    """Receive by all warps what `dispatch_send` of every rank has sent."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    receive(p, team_of(sm, p.num_sms, warp, p.num_warps), epoch)
    end(p, epoch)


def cut_of(p: DispatchParams) -> Cut:
    """Return how this rank's peers are cut into streams."""
    return Cut(p.rank, p.world_size, p.ranks_per_node, p.near_parts, p.far_parts)


def first_slot(p: DispatchParams, source: int, epoch: int) -> int:
    """Return the slot of the first row of a source, at any of its peers."""
    return ((epoch & 1) * p.world_size + source) * p.peer_rows


def select(p: DispatchParams, peer: int, place: int) -> int:
    """List what a peer owns of the own tokens' selections, into list `place`; return how many."""
    topk = TopkRow(
        p.topk_idx_addr, p.topk_weights_addr, p.num_topk, p.experts_per_rank, p.world_size
    )
    entries = p.entries_addr + place * p.peer_rows * ENTRY
    return isa.select_rank(
        topk, p.num_tokens, peer, Selected(entries, p.counts_addr + place * p.counts_bytes)
    )


def send_rows(p: DispatchParams, team: Team, epoch: int) -> None:
    """Send this warp's streams."""
    isa.mark(SENDING)
    cut = cut_of(p)
    for index in range(team.worker, num_streams(cut), team.num_workers):
        stream = stream_at(cut, index)
        count = select(p, stream.peer, index)
        entries = p.entries_addr + index * p.peer_rows * ENTRY
        if is_same_node(p.rank, stream.peer, p.ranks_per_node):
            send_near(p, stream, entries, count, epoch)
        else:
            send_far(p, stream, entries, count, epoch)


def send_near(p: DispatchParams, stream: Stream, entries: int, count: int, epoch: int) -> None:
    """Send a stream's rows over NVLink."""
    place = first_slot(p, p.rank, epoch)
    flag = p.arrived + 8 * (p.rank * p.num_parts + stream.part)
    said = 0
    for sent, row in enumerate(range(stream.part, count, stream.num_parts)):
        if sent - said == p.near_batch:
            isa.fence_release()
            isa.add(stream.peer, flag, sent - said)
            said = sent
        entry = entries + row * ENTRY
        slot = isa.load_i32(entry)
        isa.store_i32(p.send_index_addr + 4 * slot, row)
        into = p.slot_entries + (place + row) * ENTRY
        isa.store(stream.peer, into, isa.load_i64(entry))
        isa.store(stream.peer, into + 8, isa.load_i64(entry + 8))
        x_addr = p.x_addr + slot // p.num_topk * p.x_row_bytes
        slots = p.slots + (place + row) * p.x_row_bytes
        isa.copy_row_bulk(stream.peer, slots, x_addr, p.x_row_bytes)
    isa.fence_release()
    isa.add(stream.peer, flag, EPOCH - said)


def send_far(p: DispatchParams, stream: Stream, entries: int, count: int, epoch: int) -> None:
    """Post a stream's rows to the NIC."""
    channel = isa.sm_id()
    place = first_slot(p, p.rank, epoch)
    flag = p.arrived + 8 * (p.rank * p.num_parts + stream.part)
    into = p.slot_entries + place * ENTRY
    if count > 0 and stream.num_parts == 1:
        isa.put_bytes(stream.peer, into, entries, count * ENTRY, channel)
    said = 0
    for sent, row in enumerate(range(stream.part, count, stream.num_parts)):
        if sent - said == p.far_batch:
            isa.put_signal(stream.peer, flag, sent - said, channel)
            said = sent
        slot = isa.load_i32(entries + row * ENTRY)
        isa.store_i32(p.send_index_addr + 4 * slot, row)
        if stream.num_parts > 1:
            isa.put_bytes(stream.peer, into + row * ENTRY, entries + row * ENTRY, ENTRY, channel)
        x_addr = p.x_addr + slot // p.num_topk * p.x_row_bytes
        slots = p.slots + (place + row) * p.x_row_bytes
        isa.put_row(stream.peer, slots, x_addr, p.x_row_bytes, channel)
    isa.put_signal(stream.peer, flag, EPOCH - said, channel)


def send_counts(p: DispatchParams, team: Team, epoch: int) -> None:
    """Tell every rank how many rows it gets from this one for each of its experts."""
    isa.mark(COUNTING)
    num_experts = p.experts_per_rank * p.world_size
    buffer = epoch & 1
    for turn in range(team.worker, p.world_size, team.num_workers):
        peer = (p.rank + 1 + turn) % p.world_size
        place = num_streams(cut_of(p)) + peer
        select(p, peer, place)
        for local in range(p.experts_per_rank):
            count = isa.load_i32(p.counts_addr + place * p.counts_bytes + 4 * local)
            at = buffer * num_experts + peer * p.experts_per_rank + local
            value = EPOCH + count - isa.load_i32(p.sent_counts_addr + 4 * at)
            isa.store_i32(p.sent_counts_addr + 4 * at, count)
            flag = p.counted + 8 * (buffer * num_experts + local * p.world_size + p.rank)
            signal(p.rank, peer, p.ranks_per_node, flag, value, p.num_sms)


def receive(p: DispatchParams, team: Team, epoch: int) -> None:
    """Copy rows to their places as they arrive."""
    isa.mark(RECEIVING)
    lay_out(p, team, epoch)
    totals = p.totals_addr + isa.sm_id() * p.totals_bytes
    recv_parts = max(team.num_workers // p.world_size, 1)
    step, num_left = 0, 1
    while num_left > 0:
        num_left = 0
        for item in range(team.worker, p.world_size * recv_parts, team.num_workers):
            source = (p.rank + item) % p.world_size
            row = step * recv_parts + item // p.world_size
            if row < isa.load_i32(totals + 4 * source):
                receive_row(p, source, row, epoch)
                num_left += 1
        step += 1


def lay_out(p: DispatchParams, team: Team, epoch: int) -> None:
    """Wait for all counts; write where rows begin, how many each source sends, `recv_counts`."""
    num_pairs = p.experts_per_rank * p.world_size
    begins = p.begins_addr + isa.sm_id() * p.begins_bytes
    if team.member == 0:
        counted = p.counted + 8 * (epoch & 1) * num_pairs
        isa.wait_all(counted, 8, num_pairs, ((epoch + 1) >> 1) * EPOCH)
        isa.scan_words(counted, num_pairs, begins)
    isa.group_sync(1, team.size)
    for source in range(team.member, p.world_size, team.size):
        total = 0
        for local in range(p.experts_per_rank):
            pair = local * p.world_size + source
            count = isa.load_i32(begins + 4 * pair + 4) - isa.load_i32(begins + 4 * pair)
            total += count
            if isa.sm_id() == 0:
                at = source * p.experts_per_rank + local
                isa.store_i32(p.recv_counts_addr + 4 * at, count)
        isa.store_i32(p.totals_addr + isa.sm_id() * p.totals_bytes + 4 * source, total)
    isa.group_sync(1, team.size)


def receive_row(p: DispatchParams, source: int, row: int, epoch: int) -> None:
    """Wait for a row of a source and copy it, its id and its weight to their place."""
    parts = parts_between(cut_of(p), source)
    flag = p.arrived + 8 * (source * p.num_parts + row % parts)
    isa.wait_ge(flag, (epoch - 1) * EPOCH + row // parts + 1)
    slot = first_slot(p, source, epoch) + row
    entry = p.slot_entries_addr + slot * ENTRY
    local = isa.load_i32(entry + 8)
    begins = p.begins_addr + isa.sm_id() * p.begins_bytes
    place = isa.load_i32(begins + 4 * (local * p.world_size + source)) + isa.load_i32(entry + 12)
    into = p.recv_x + place * p.x_row_bytes
    isa.copy_row_bulk(p.rank, into, p.slots_addr + slot * p.x_row_bytes, p.x_row_bytes)
    isa.store_i32(p.recv_topk_idx_addr + 4 * place, local)
    isa.store_i32(p.recv_topk_weights_addr + 4 * place, isa.load_i32(entry + 4))
    back = source * p.peer_rows + row
    isa.store_i32(p.back_rows_addr + 4 * back, place)
    isa.store_i32(p.back_slots_addr + 4 * back, isa.load_i32(entry))


def end(p: DispatchParams, epoch: int) -> None:
    """End an epoch, when the block's warps are done and the puts of its channel have completed."""
    isa.mark(ENDING)
    isa.block_sync()
    if isa.warp_id() == 0:
        isa.store(p.rank, p.dispatch_epoch + 8 * isa.sm_id(), epoch)
        if p.world_size > p.ranks_per_node:
            isa.put_wait(isa.sm_id())
