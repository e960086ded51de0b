"""The event loop and what begins and ends a launch."""

from collections.abc import Callable
from functools import cache

from numba import njit

from comms.compiling import inner, use_cache
from comms.fiber import CONTEXT_BYTES, install_switch, prepare, switch
from comms.parts import WholeCompiler
from comms.raw import record_at, word_at
from comms.sim.deliver import arrive
from comms.sim.events import pop, push, push_launch_end, wake
from comms.sim.ports import finish_service
from comms.sim.record import run_recorded
from comms.sim.state import (
    EV_ARRIVE,
    EV_EGRESS,
    EV_LAUNCH,
    EV_WARP,
    LAUNCH,
    LAUNCH_BYTES,
    NUM_GROUPS,
    block_at,
    group_at,
    header,
    rank_at,
    warp_at,
)


@inner
def begin_launch(e: int, rank: int) -> None:
    """Create the warps of a rank's current launch."""
    h = header(e)
    r = rank_at(e, rank)
    launch = record_at(h.launches + r.launch * LAUNCH_BYTES, LAUNCH)
    r.launch_start = h.now
    r.row_stride, r.row_full = launch.row_stride, launch.row_full
    r.live_warps = launch.num_blocks * launch.num_warps
    argument = h.params + (r.launch * h.world_size + rank) * h.params_words * 8
    for sm in range(launch.num_blocks):
        block = rank * h.blocks_per_rank + sm
        first = rank * h.warps_per_rank + sm * launch.num_warps
        b = block_at(e, block)
        b.sm, b.first_warp, b.generation = sm, first, 0
        b.num_warps = b.live_warps = launch.num_warps
        b.arrived, b.num_fencing, b.old_outstanding, b.old_ack = 0, 0, 0, 0
        b.sync_head = b.sync_tail = b.fence_head = -1
        for index in range(NUM_GROUPS):
            g = group_at(e, block * NUM_GROUPS + index)
            g.arrived, g.generation, g.old_outstanding, g.old_ack = 0, 0, 0, 0
            g.sync_head = g.sync_tail = -1
        b.copy_free = b.reduce_free = b.words_at = h.now
        for index in range(launch.num_warps):
            warp = first + index
            w = warp_at(e, warp)
            w.rank, w.block, w.index = rank, block, index
            w.outstanding, w.last_ack, w.pending_reads, w.debt, w.stage = 0, 0, 0, 0, 0
            w.line, w.unreleased, w.group, w.record = 0, 0, -1, 0
            w.context = h.stacks + (warp + 1) * h.stack_bytes - CONTEXT_BYTES
            prepare(w.context, e, warp, h.start_address, launch.entry, argument)
            wake(e, warp, h.now)
    if r.live_warps == 0:
        push_launch_end(e, rank)


@inner
def end_launch(e: int, rank: int) -> None:
    """Record when a rank's launch ended and schedule its next."""
    h = header(e)
    r = rank_at(e, rank)
    word_at(h.launch_ends + (r.launch * h.world_size + rank) * 8)[0] = h.now
    word_at(h.launch_starts + (r.launch * h.world_size + rank) * 8)[0] = r.launch_start
    r.launch += 1
    if r.launch == h.num_launches:
        h.live_ranks -= 1
    else:
        r.live_warps = -1
        push(e, h.now + h.launch_gap, EV_LAUNCH, rank)


def run_slice(e: int, max_events: int, time_limit: int) -> bool:
    """Handle up to `max_events` events; return whether the run can go on.

    Kernels run on their fibers from here. `compiled_loop` compiles it.
    """
    h = header(e)
    h.slice_end = h.events + max_events
    while h.heap_size > 0 and h.events < h.slice_end and h.error == 0 and h.now <= time_limit:
        code = pop(e)
        h.events += 1
        kind, index = code & 7, code >> 3
        if kind == EV_WARP:
            if h.records != 0:
                run_recorded(e, index)
            else:
                switch(h.main_context, warp_at(e, index).context)
        elif kind == EV_EGRESS:
            finish_service(e, index)
        elif kind == EV_ARRIVE:
            arrive(e, index)
        elif rank_at(e, index).live_warps == 0:
            end_launch(e, index)
        else:
            begin_launch(e, index)
    return h.heap_size > 0 and h.error == 0 and h.now <= time_limit


@cache
def compiled_loop() -> Callable[[int, int, int], bool]:
    """Return `run_slice` compiled, from the disk where it is there."""
    install_switch()
    use_cache()
    compiled: Callable[[int, int, int], bool] = njit(cache=True, pipeline_class=WholeCompiler)(
        run_slice
    )
    return compiled
