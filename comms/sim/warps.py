"""What a warp can do besides moving bytes: pass time, wait, synchronise, release.

These run on the warp's fiber. Each takes the address of the running context, from which engine and
warp follow.
"""

from typing import Any

from comms.compiling import inner
from comms.fiber import switch
from comms.raw import word_at
from comms.sim.deliver import bucket_at, covered_at
from comms.sim.events import item, push, push_launch_end, wake
from comms.sim.record import record_mark, record_wait
from comms.sim.state import (
    BAD_GROUP,
    BLOCK_SYNC,
    DONE,
    EV_WARP,
    FENCE,
    GROUP_SYNC,
    NUM_GROUPS,
    READY,
    WAIT_ANY,
    WAIT_GE,
    block_at,
    group_at,
    header,
    rank_at,
    warp_at,
)


@inner
def suspend(e: int, warp: int) -> None:
    """Give the processor back to the event loop until the warp is woken."""
    switch(warp_at(e, warp).context, header(e).main_context)


@inner
def sleep_until(e: int, warp: int, time: int) -> None:
    """Let virtual time pass until `time`; nothing else happens where nothing is due before."""
    h = header(e)
    if h.events < h.slice_end and (h.heap_size == 0 or item(h.heap, 0).time > time):
        h.now = time
        h.events += 1
        return
    warp_at(e, warp).state = READY
    push(e, time, EV_WARP, warp)
    suspend(e, warp)


@inner
def pay(e: int, warp: int, picoseconds: int) -> None:
    """Let the time of earlier instructions and `picoseconds` more pass."""
    w = warp_at(e, warp)
    debt = w.debt
    w.debt = 0
    sleep_until(e, warp, header(e).now + debt + picoseconds)


@inner
def owe(e: int, warp: int, picoseconds: int) -> None:
    """Charge an instruction that nobody can observe; the next one that lets time pass pays."""
    warp_at(e, warp).debt += picoseconds


@inner
def settle(e: int, warp: int) -> None:
    """Pay before something becomes observable, unless it is at most one L2 latency early."""
    if warp_at(e, warp).debt > header(e).l2:
        pay(e, warp, 0)


@inner
def fail(e: int, warp: int, error: int, a: int, b: int) -> None:
    """Stop the engine with an error of this warp; never returns to it."""
    h = header(e)
    if h.error == 0:
        h.error, h.error_warp, h.error_a, h.error_b = error, warp, a, b
    while True:
        suspend(e, warp)


@inner
def await_word(e: int, warp: int, offset: int, value: int, line: int) -> None:
    """Suspend until a poll shows the word at `offset` of the own window at `value` or more."""
    w = warp_at(e, warp)
    w.wait_offset, w.wait_value, w.line = offset, value, line
    w.state = WAIT_GE
    w.next = -1
    bucket = bucket_at(e, w.rank, offset)
    if bucket.head < 0:
        bucket.head = warp
    else:
        warp_at(e, bucket.tail).next = warp
    bucket.tail = warp
    suspend(e, warp)


@inner
def wait_ge(e: int, warp: int, offset: int, value: int, line: int) -> int:
    """Poll the word at `offset` of the own window until it is at least `value`; return it."""
    w = warp_at(e, warp)
    w.poll_base = header(e).now + w.debt
    pay(e, warp, header(e).l2)
    word = word_at(rank_at(e, w.rank).base + offset)
    if word[0] < value:
        await_word(e, warp, offset, value, line)
    return word[0]


@inner
def wait_all(
    e: int, warp: int, offset: int, stride: int, count: int, value: int, line: int
) -> None:
    """Poll `count` words, lane by lane, until each is at least `value`."""
    w = warp_at(e, warp)
    w.poll_base = header(e).now + w.debt
    pay(e, warp, header(e).l2 + (count + 31) // 32 * header(e).word_issue)
    base = rank_at(e, w.rank).base
    for index in range(count):
        word = offset + index * stride
        if word_at(base + word)[0] < value:
            await_word(e, warp, word, value, line)


@inner
def wait_any(
    e: int, warp: int, offset: int, stride: int, values: int, count: int, first: int, line: int
) -> int:
    """Poll `count` words, lane by lane, until one is at least its value; return its index.

    Of several, the next from index `first` on.

    `values` is the local address of `count` int64 values.
    """
    w = warp_at(e, warp)
    base = rank_at(e, w.rank).base + offset
    w.poll_base = header(e).now + w.debt
    pay(e, warp, header(e).l2 + (count + 31) // 32 * header(e).word_issue)
    while True:
        for step in range(count):
            index = (first + step) % count
            if word_at(base + index * stride)[0] >= word_at(values + 8 * index)[0]:
                return index
        w.wait_offset, w.wait_stride, w.wait_count, w.line = offset, stride, count, line
        w.wait_values = values
        w.state = WAIT_ANY
        r = rank_at(e, w.rank)
        w.next = r.any_head
        r.any_head = warp
        suspend(e, warp)


@inner
def come_to(e: int, barrier: Any, warp: int) -> None:
    """Append a warp to those that wait at the barrier of a block or of a group."""
    if barrier.sync_head < 0:
        barrier.sync_head = warp
    else:
        warp_at(e, barrier.sync_tail).next = warp
    barrier.sync_tail = warp
    barrier.arrived += 1


@inner
def let_go(e: int, barrier: Any, unreleased: int) -> None:
    """Wake the warps that wait at a barrier; each then knows of the rows of all."""
    time = header(e).now + header(e).sync
    warp = barrier.sync_head
    barrier.sync_head = barrier.sync_tail = -1
    while warp >= 0:
        after = warp_at(e, warp).next
        warp_at(e, warp).unreleased = unreleased
        wake(e, warp, time)
        warp = after


@inner
def open_barrier(e: int, block: int) -> None:
    """Let the warps that wait at the block's barrier go on."""
    b = block_at(e, block)
    b.old_outstanding, b.arrived = 0, 0
    b.generation += 1
    unreleased = 0
    for index in range(b.num_warps):
        w = warp_at(e, b.first_warp + index)
        b.old_outstanding += w.outstanding
        b.old_ack = max(b.old_ack, w.last_ack)
        unreleased |= w.unreleased
    let_go(e, b, unreleased)


@inner
def block_sync(e: int, warp: int, line: int) -> None:
    """Wait for the other warps of the block; releases then cover their earlier writes."""
    w = warp_at(e, warp)
    pay(e, warp, 0)
    b = block_at(e, w.block)
    w.line = line
    w.state = BLOCK_SYNC
    w.next = -1
    come_to(e, b, warp)
    if b.arrived == b.live_warps:
        open_barrier(e, w.block)
    suspend(e, warp)


@inner
def open_group(e: int, group: int) -> None:
    """Let the warps that wait at a named barrier go on."""
    g = group_at(e, group)
    g.old_outstanding, g.arrived = 0, 0
    g.generation += 1
    unreleased = 0
    warp = g.sync_head
    while warp >= 0:
        w = warp_at(e, warp)
        g.old_outstanding += w.outstanding
        g.old_ack = max(g.old_ack, w.last_ack)
        unreleased |= w.unreleased
        warp = w.next
    let_go(e, g, unreleased)


@inner
def group_sync(e: int, warp: int, index: int, num_warps: int, line: int) -> None:
    """Wait for the other warps of a group; releases then cover their earlier writes."""
    w = warp_at(e, warp)
    pay(e, warp, 0)
    group = w.block * NUM_GROUPS + index
    if index < 1 or index >= NUM_GROUPS or (w.group >= 0 and w.group != group):
        fail(e, warp, BAD_GROUP, index, num_warps)
    w.group, w.line, w.state, w.next = group, line, GROUP_SYNC, -1
    g = group_at(e, group)
    come_to(e, g, warp)
    if g.arrived == num_warps:
        open_group(e, group)
    suspend(e, warp)


@inner
def fence(e: int, warp: int) -> None:
    """Sleep until every write that a release by this warp covers has been acknowledged."""
    w = warp_at(e, warp)
    pay(e, warp, 0)
    w.unreleased = 0
    b = block_at(e, w.block)
    earliest = header(e).now + header(e).fence
    covered = covered_at(e, warp)
    if covered >= 0:
        until = max(earliest, covered)
        if header(e).records != 0:
            record_wait(e, warp, FENCE, header(e).now, until)
        sleep_until(e, warp, until)
        return
    w.state = FENCE
    w.wait_value = earliest
    w.next = b.fence_head
    b.fence_head = warp
    b.num_fencing += 1
    suspend(e, warp)


@inner
def release(e: int, warp: int) -> None:
    """Sleep until every earlier write has been acknowledged: what posting to a NIC comes after."""
    pay(e, warp, 0)
    covered = covered_at(e, warp)
    if covered < 0 or covered > header(e).now:
        fence(e, warp)
    warp_at(e, warp).unreleased = 0


@inner
def mark(e: int, warp: int, stage: int) -> None:
    """Name the stage that the warp is in."""
    warp_at(e, warp).stage = stage
    if header(e).records != 0:
        record_mark(e, warp, stage)


@inner
def finish(e: int, warp: int) -> None:
    """End the warp; its rank's launch ends with the last warp and the last acknowledged write."""
    w = warp_at(e, warp)
    pay(e, warp, 0)
    w.state = DONE
    b = block_at(e, w.block)
    b.live_warps -= 1
    if b.arrived > 0 and b.arrived == b.live_warps:
        open_barrier(e, w.block)
    r = rank_at(e, w.rank)
    r.live_warps -= 1
    if r.live_warps == 0 and r.outstanding == 0:
        push_launch_end(e, w.rank)
    suspend(e, warp)
