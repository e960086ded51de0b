"""What happens when a transfer arrives: memory changes, waiters wake, writes are acknowledged."""

from typing import Any

from comms.compiling import inner
from comms.raw import move, record_at, word_at
from comms.sim.events import push, push_launch_end, wake
from comms.sim.ports import acknowledge_row, free_ingress, give_transfer, meter, reply
from comms.sim.record import record_hop
from comms.sim.state import (
    BUCKET,
    BUCKET_BYTES,
    CHANNEL,
    CHANNEL_BYTES,
    EV_ARRIVE,
    FETCH_ADD,
    HBM,
    NIC_IN,
    NIC_OUT,
    NUM_PORTS,
    NVL_IN,
    NVL_OUT,
    PUT,
    READ_DATA,
    READ_REQUEST,
    READS,
    REGION,
    REGION_BYTES,
    ROW,
    ROW_LATE,
    SEEN,
    SIGNAL,
    STORE,
    TOPK,
    WAIT_ANY,
    block_at,
    cost,
    group_at,
    header,
    port_at,
    rank_at,
    region_at,
    transfer_at,
    warp_at,
)


@inner
def bucket_at(e: int, rank: int, offset: int) -> Any:
    """Return the list of warps that wait for a flag, and for those that share its hash."""
    h = header(e)
    index = (rank * 1000003 + (offset >> 3)) % h.num_buckets
    return record_at(h.buckets + index * BUCKET_BYTES, BUCKET)


@inner
def next_poll(e: int, warp: int) -> int:
    """Return when a polling warp has the answer of its first poll from now on."""
    w = warp_at(e, warp)
    polls = (header(e).now - w.poll_base + header(e).poll - 1) // header(e).poll
    return w.poll_base + polls * header(e).poll + header(e).l2


@inner
def ends_wait(w: Any, offset: int, value: int) -> bool:
    """Return whether a word at `offset` that is now `value` ends the wait of warp `w` for any."""
    inside = offset - w.wait_offset
    if inside < 0 or inside >= w.wait_count * w.wait_stride or inside % w.wait_stride != 0:
        return False
    return value >= word_at(w.wait_values + inside // w.wait_stride * 8)[0]


@inner
def word_changed(e: int, rank: int, offset: int, value: int) -> None:
    """Wake the warps of `rank` whose wait on the word at `offset` is over."""
    bucket = bucket_at(e, rank, offset)
    before, warp = -1, bucket.head
    while warp >= 0:
        w = warp_at(e, warp)
        after = w.next
        if w.rank == rank and w.wait_offset == offset and value >= w.wait_value:
            if before < 0:
                bucket.head = after
            else:
                warp_at(e, before).next = after
            if after < 0:
                bucket.tail = before
            wake(e, warp, next_poll(e, warp))
        else:
            before = warp
        warp = after
    r = rank_at(e, rank)
    before, warp = -1, r.any_head
    while warp >= 0:
        w = warp_at(e, warp)
        after = w.next
        if w.state == WAIT_ANY and ends_wait(w, offset, value):
            if before < 0:
                r.any_head = after
            else:
                warp_at(e, before).next = after
            wake(e, warp, next_poll(e, warp))
        else:
            before = warp
        warp = after


@inner
def is_late(e: int, rank: int, offset: int) -> bool:
    """Return whether a write comes after the launch whose output it is; count it if so."""
    region = record_at(header(e).regions + region_at(e, offset) * REGION_BYTES, REGION)
    r = rank_at(e, rank)
    if 0 <= region.judged_after < r.launch:
        r.late += 1
        return True
    return False


@inner
def covered_at(e: int, warp: int) -> int:
    """Return when all that a release of `warp` covers was acknowledged, -1 while it is not."""
    w = warp_at(e, warp)
    b = block_at(e, w.block)
    if w.outstanding > 0 or b.old_outstanding > 0:
        return -1
    time = max(w.last_ack, b.old_ack)
    if w.group < 0:
        return time
    g = group_at(e, w.group)
    return -1 if g.old_outstanding > 0 else max(time, g.old_ack)


@inner
def acknowledge(e: int, warp: int, generation: int, group_generation: int, time: int) -> None:
    """Account an acknowledged write of `warp`; wake warps whose release waited for it.

    Args:
        e: the engine.
        warp: who wrote.
        generation: of its block's barrier when it did.
        group_generation: of its group's barrier, 0 where it had none yet.
        time: when the warp knows.
    """
    w = warp_at(e, warp)
    b = block_at(e, w.block)
    r = rank_at(e, w.rank)
    w.outstanding -= 1
    w.last_ack = max(w.last_ack, time)
    r.outstanding -= 1
    r.last_ack = max(r.last_ack, time)
    if generation < b.generation:
        b.old_outstanding -= 1
        b.old_ack = max(b.old_ack, time)
    if w.group >= 0:
        g = group_at(e, w.group)
        if group_generation < g.generation:
            g.old_outstanding -= 1
            g.old_ack = max(g.old_ack, time)
    if b.num_fencing > 0 and b.old_outstanding == 0:
        before, other = -1, b.fence_head
        while other >= 0:
            o = warp_at(e, other)
            after = o.next
            covered = covered_at(e, other)
            if covered >= 0:
                if before < 0:
                    b.fence_head = after
                else:
                    warp_at(e, before).next = after
                b.num_fencing -= 1
                wake(e, other, max(o.wait_value, covered))
            else:
                before = other
            other = after
    if r.live_warps == 0 and r.outstanding == 0:
        push_launch_end(e, w.rank)


@inner
def hold_signal(e: int, transfer: int) -> None:
    """Keep a signal that has overtaken the puts it comes after until they have arrived."""
    c = channel_at(e, transfer_at(e, transfer).key)
    transfer_at(e, transfer).next = 0
    if c.head == 0:
        c.head = transfer + 1
    else:
        transfer_at(e, c.tail - 1).next = transfer + 1
    c.tail = transfer + 1


@inner
def flush_signals(e: int, key: int) -> None:
    """Deliver the signals of a channel whose earlier puts have all arrived."""
    c = channel_at(e, key)
    while c.head > 0 and transfer_at(e, c.head - 1).after <= c.arrived:
        signal = c.head - 1
        c.head = transfer_at(e, signal).next
        change_word(e, signal)
        give_transfer(e, signal)


@inner
def channel_at(e: int, key: int) -> Any:
    """Return the record of a (source, destination, channel) triple."""
    return record_at(header(e).channels + key * CHANNEL_BYTES, CHANNEL)


@inner
def change_word(e: int, transfer: int) -> None:
    """Store or add a transfer's value and wake who waited for it."""
    t = transfer_at(e, transfer)
    word = word_at(rank_at(e, t.dst_rank).base + t.offset)
    word[0] = t.value if t.kind == STORE else word[0] + t.value
    word_changed(e, t.dst_rank, t.offset, word[0])


@inner
def deliver(e: int, transfer: int) -> None:
    """Apply a transfer that has arrived."""
    t = transfer_at(e, transfer)
    rank = t.dst_rank
    base = rank_at(e, rank).base
    kind = t.kind
    now = header(e).now
    latency = port_at(e, t.src_rank * NUM_PORTS + t.port).latency
    if kind == READ_REQUEST:
        t.kind = READ_DATA
        t.source = base + t.offset
        t.dst_rank, t.src_rank = t.src_rank, rank
        t.bytes = t.value
        reply(e, rank * NUM_PORTS + NVL_OUT, transfer)
        return
    if kind == READ_DATA:
        if t.port == HBM:
            # Local reads see the local writes that were queued before them.
            move(t.slot, t.source, t.num_bytes)
        w = warp_at(e, t.warp)
        w.pending_reads -= 1
        if w.pending_reads == 0 and w.state == READS:
            wake(e, t.warp, now)
        return
    if kind == SIGNAL:
        if channel_at(e, t.key).arrived < t.after:
            hold_signal(e, transfer)
        else:
            change_word(e, transfer)
            give_transfer(e, transfer)
        return
    if kind == FETCH_ADD:
        warp_at(e, t.warp).reply = word_at(base + t.offset)[0]
        change_word(e, transfer)
        wake(e, t.warp, now + latency)
        give_transfer(e, transfer)
        return
    if kind != SEEN and not is_late(e, rank, t.offset):
        if kind == ROW:
            move(base + t.offset, t.slot, t.num_bytes)
        elif kind == TOPK:
            half = t.num_bytes // 2
            move(base + t.offset, t.slot, half)
            move(base + t.offset2, t.slot + half, half)
        elif kind in (PUT, ROW_LATE):
            move(base + t.offset, t.source, t.num_bytes)
        else:
            change_word(e, transfer)
    if kind == PUT:
        c = channel_at(e, t.key)
        c.arrived += 1
        c.arrived_at = now
        if c.arrived == c.posted:
            waiter, c.waiter = c.waiter, 0
            while waiter > 0:
                after = warp_at(e, waiter - 1).next
                wake(e, waiter - 1, now)
                waiter = after
    if t.port == NVL_OUT and (kind in (ROW, ROW_LATE, TOPK)):
        acknowledge_row(e, t.src_rank, rank, t.bytes)
    # No fence of a warp covers what it gave to the NIC, so nobody waits for an acknowledgement.
    if t.port != NIC_OUT:
        acknowledge(e, t.warp, t.generation, t.group_generation, now + latency)
    give_transfer(e, transfer)


@inner
def arrive(e: int, port: int) -> None:
    """Take the transfer that arrives at `port` now and deliver it."""
    p = port_at(e, port)
    transfer = p.head
    t = transfer_at(e, transfer)
    p.head = t.next
    if p.head < 0:
        p.tail = -1
    else:
        push(e, transfer_at(e, p.head).time, EV_ARRIVE, port)
    if header(e).records != 0:
        record_hop(e, port, transfer)
    kind = port % NUM_PORTS
    num_bytes, is_put, key = t.bytes, t.kind == PUT, t.key
    deliver(e, transfer)
    if kind in (NVL_IN, NIC_IN):
        meter(e, port, header(e).now, cost(num_bytes, p.mbps))
        free_ingress(e, port, num_bytes)
        if is_put:
            flush_signals(e, key)
