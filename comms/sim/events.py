"""The event heap: four children a node, ordered by time, then by the order of insertion."""

from typing import Any

from comms.compiling import inner
from comms.raw import record_at
from comms.sim.state import (
    EV_LAUNCH,
    EV_WARP,
    EVENT,
    EVENT_BYTES,
    READY,
    header,
    rank_at,
    warp_at,
)


@inner
def item(heap: int, index: int) -> Any:
    """Return the event at a place of the heap."""
    return record_at(heap + index * EVENT_BYTES, EVENT)


@inner
def push(e: int, time: int, kind: int, index: int) -> None:
    """Schedule event `kind` of `index` at `time`."""
    h = header(e)
    heap = h.heap
    seq = h.seq
    h.seq = seq + 1
    hole = h.heap_size
    h.heap_size = hole + 1
    while hole > 0:
        parent = (hole - 1) >> 2
        if item(heap, parent).time <= time:
            break
        item(heap, hole).time = item(heap, parent).time
        item(heap, hole).seq = item(heap, parent).seq
        item(heap, hole).code = item(heap, parent).code
        hole = parent
    item(heap, hole).time = time
    item(heap, hole).seq = seq
    item(heap, hole).code = (index << 3) | kind


@inner
def pop(e: int) -> int:
    """Take the earliest event off the heap, set the clock to it, return its code."""
    h = header(e)
    heap = h.heap
    h.now = item(heap, 0).time
    code = item(heap, 0).code
    size = h.heap_size - 1
    h.heap_size = size
    if size == 0:
        return code
    time, seq, last = item(heap, size).time, item(heap, size).seq, item(heap, size).code
    hole = 0
    while True:
        child = 4 * hole + 1
        if child >= size:
            break
        best = child
        best_time, best_seq = item(heap, child).time, item(heap, child).seq
        for other in range(child + 1, min(child + 4, size)):
            other_time = item(heap, other).time
            if other_time < best_time or (
                other_time == best_time and item(heap, other).seq < best_seq
            ):
                best, best_time, best_seq = other, other_time, item(heap, other).seq
        if time < best_time or (time == best_time and seq < best_seq):
            break
        item(heap, hole).time = best_time
        item(heap, hole).seq = best_seq
        item(heap, hole).code = item(heap, best).code
        hole = best
    item(heap, hole).time = time
    item(heap, hole).seq = seq
    item(heap, hole).code = last
    return code


@inner
def wake(e: int, warp: int, time: int) -> None:
    """Make `warp` runnable at `time`."""
    warp_at(e, warp).state = READY
    push(e, time, EV_WARP, warp)


@inner
def push_launch_end(e: int, rank: int) -> None:
    """Schedule the end of a rank's launch: its warps are done and its writes acknowledged."""
    push(e, max(header(e).now, rank_at(e, rank).last_ack), EV_LAUNCH, rank)
