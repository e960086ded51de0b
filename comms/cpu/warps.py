"""What a warp can do besides moving bytes: wait, synchronise, fail.

These run on the warp's fiber. A warp that cannot go on gives the thread to the next one of its
block; when all of them have looked in vain the thread yields its core. Warps of a block never run
at the same time, and only here do they change places.
"""

from comms import atomics
from comms.compiling import inner
from comms.cpu.state import (
    ABORTED,
    BAD_GROUP,
    BLOCK_BYTES,
    BLOCK_SYNC,
    DONE,
    ERROR_AT,
    GROUP_SYNC,
    MAIN_RSP_AT,
    NUM_GROUPS,
    PAUSE,
    READY,
    SPIN,
    TIMEOUT,
    WAIT_ANY,
    WAIT_GE,
    base_of,
    block_at,
    group_at,
    machine,
    warp_at,
)
from comms.fiber import switch
from comms.raw import word_at


@inner
def main_context(m: int, block: int) -> int:
    """Return where the thread of a block keeps its own context."""
    return machine(m).blocks + block * BLOCK_BYTES + MAIN_RSP_AT


@inner
def give_way(m: int, warp: int) -> None:
    """Let the next live warp of the block run; returns when this one's turn comes again."""
    w = warp_at(m, warp)
    b = block_at(m, w.block)
    after = warp
    while True:
        after += 1
        if after == b.first_warp + b.num_warps:
            after = b.first_warp
        if after == warp or warp_at(m, after).state != DONE:
            break
    if after != warp:
        switch(w.context, warp_at(m, after).context)


@inner
def leave(m: int, warp: int) -> None:
    """End the block's part of the launch at once; its warps never run again."""
    w = warp_at(m, warp)
    switch(w.context, main_context(m, w.block))


@inner
def fail(m: int, warp: int, error: int, a: int, b: int) -> None:
    """End the program on every rank with an error of this warp, unless it is ending already."""
    h = machine(m)
    if atomics.claim(m + ERROR_AT, error) == 0:
        h.error_warp, h.error_a, h.error_b = warp, a, b
        atomics.claim(h.abort, h.rank + 1)
    leave(m, warp)


@inner
def idle(m: int, warp: int) -> None:
    """Pass on a turn that led nowhere; ends the program at the time limit or by the abort word."""
    w = warp_at(m, warp)
    b = block_at(m, w.block)
    h = machine(m)
    if atomics.load_relaxed(h.abort) != 0:
        atomics.claim(m + ERROR_AT, ABORTED)
        leave(m, warp)
    b.idle += 1
    if b.idle >= b.num_live:
        b.idle = 0
        now = atomics.monotonic_ns()
        if w.since_ns == 0:
            w.since_ns = now
        elif now - w.since_ns > h.limit_ns:
            fail(m, warp, TIMEOUT, 0, 0)
        atomics.yield_thread()
    give_way(m, warp)


@inner
def resume(m: int, warp: int) -> None:
    """Note that a wait has ended."""
    w = warp_at(m, warp)
    w.state, w.since_ns = READY, 0
    block_at(m, w.block).idle = 0


@inner
def wait_ge(m: int, warp: int, offset: int, value: int, line: int) -> int:
    """Poll the word at `offset` of the own window until it is at least `value`; return it."""
    address = base_of(m, machine(m).rank) + offset
    seen = atomics.load_acquire(address)
    if seen >= value:
        return seen
    w = warp_at(m, warp)
    w.wait_offset, w.wait_value, w.line, w.state = offset, value, line, WAIT_GE
    w.since_ns = 0
    while seen < value:
        idle(m, warp)
        seen = atomics.load_acquire(address)
    resume(m, warp)
    return seen


@inner
def wait_any(
    m: int, warp: int, offset: int, stride: int, values: int, count: int, first: int, line: int
) -> int:
    """Poll `count` words until one is at least its value; return its index, from `first` on."""
    base = base_of(m, machine(m).rank) + offset
    w = warp_at(m, warp)
    w.wait_offset, w.wait_count, w.line = offset, count, line
    w.state, w.since_ns = WAIT_ANY, 0
    while True:
        for step in range(count):
            index = (first + step) % count
            if atomics.load_acquire(base + index * stride) >= word_at(values + 8 * index)[0]:
                resume(m, warp)
                return index
        idle(m, warp)


@inner
def min_words(m: int, warp: int, offset: int, stride: int, count: int) -> int:
    """Load words and return the least; let other warps run, as kernels spin on this.

    The time limit is on seeing the same least value.
    """
    base = base_of(m, machine(m).rank) + offset
    least = atomics.load_acquire(base)
    for index in range(1, count):
        least = min(least, atomics.load_acquire(base + index * stride))
    spin(m, warp, offset, least)
    return least


@inner
def spin(m: int, warp: int, offset: int, value: int) -> None:
    """Pass on the turn of a warp that may load a value at a place again and again."""
    w = warp_at(m, warp)
    if w.wait_offset != offset or w.wait_value != value:
        w.wait_offset, w.wait_value, w.since_ns = offset, value, 0
    w.state = SPIN
    idle(m, warp)
    w.state = READY


@inner
def load_acquire(m: int, warp: int, offset: int) -> int:
    """Load a word of the own window and let other warps run, as kernels spin on this.

    The time limit is on seeing the same value at the same place.
    """
    value = atomics.load_acquire(base_of(m, machine(m).rank) + offset)
    spin(m, warp, offset, value)
    return value


@inner
def block_sync(m: int, warp: int, line: int) -> None:
    """Wait for the other warps of the block."""
    w = warp_at(m, warp)
    b = block_at(m, w.block)
    b.num_arrived += 1
    if b.num_arrived == b.num_live:
        b.num_arrived = 0
        b.generation += 1
        b.idle = 0
        return
    generation = b.generation
    w.line, w.state, w.since_ns = line, BLOCK_SYNC, 0
    while b.generation == generation:
        idle(m, warp)
    resume(m, warp)


@inner
def group_sync(m: int, warp: int, index: int, num_warps: int, line: int) -> None:
    """Wait for the other warps of a group."""
    w = warp_at(m, warp)
    group = w.block * NUM_GROUPS + index
    if index < 1 or index >= NUM_GROUPS or (w.group >= 0 and w.group != group):
        fail(m, warp, BAD_GROUP, index, num_warps)
    w.group = group
    g = group_at(m, group)
    g.num_arrived += 1
    if g.num_arrived == num_warps:
        g.num_arrived = 0
        g.generation += 1
        block_at(m, w.block).idle = 0
        return
    generation = g.generation
    w.line, w.state, w.since_ns = line, GROUP_SYNC, 0
    while g.generation == generation:
        idle(m, warp)
    resume(m, warp)


@inner
def pause(m: int, warp: int, nanoseconds: int) -> None:
    """Let at least this much time pass, while other warps run."""
    end = atomics.monotonic_ns() + nanoseconds
    w = warp_at(m, warp)
    w.state, w.since_ns = PAUSE, 0
    while atomics.monotonic_ns() < end:
        idle(m, warp)
    resume(m, warp)


@inner
def finish(m: int, warp: int) -> None:
    """End this warp; the thread goes on when the last one of the block has ended."""
    w = warp_at(m, warp)
    b = block_at(m, w.block)
    w.state = DONE
    b.num_live -= 1
    b.idle = 0
    if b.num_live == 0:
        switch(w.context, main_context(m, w.block))
    if b.num_arrived == b.num_live:
        b.num_arrived = 0
        b.generation += 1
    give_way(m, warp)
