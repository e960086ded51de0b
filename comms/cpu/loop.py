"""What an SM's thread runs: launches in order, between them a barrier of the rank's own threads."""

from collections.abc import Callable
from functools import cache

from numba import njit

from comms import atomics
from comms.compiling import inner, use_cache
from comms.cpu.state import (
    ABORTED,
    ARRIVED_AT,
    ERROR_AT,
    GENERATION_AT,
    NUM_GROUPS,
    READY,
    TIMEOUT,
    base_of,
    block_at,
    group_at,
    launch_at,
    machine,
    stamp_at,
    warp_at,
)
from comms.cpu.warps import main_context
from comms.fiber import CONTEXT_BYTES, install_switch, prepare, switch
from comms.parts import WholeCompiler


@inner
def run_block(m: int, sm: int, launch: int) -> None:
    """Run a block's warps to their end."""
    h, b, work = machine(m), block_at(m, sm), launch_at(m, launch)
    b.sm, b.first_warp, b.launch = sm, sm * h.max_warps, launch
    b.num_warps = b.num_live = work.num_warps
    b.num_arrived, b.generation, b.idle = 0, 0, 0
    for index in range(NUM_GROUPS):
        group_at(m, sm * NUM_GROUPS + index).num_arrived = 0
    for index in range(work.num_warps):
        warp = b.first_warp + index
        w = warp_at(m, warp)
        w.block, w.index, w.state = sm, index, READY
        w.line, w.since_ns, w.wait_offset, w.group = 0, 0, -1, -1
        w.context = h.stacks + (warp + 1) * h.stack_bytes - CONTEXT_BYTES
        prepare(w.context, m, warp, h.start_address, work.entry, work.params)
    switch(main_context(m, sm), warp_at(m, b.first_warp).context)


@inner
def is_ended(m: int) -> bool:
    """Return whether the program ends here; notes where another rank's failure ends it."""
    if atomics.load_relaxed(machine(m).abort) != 0:
        atomics.claim(m + ERROR_AT, ABORTED)
    return atomics.load_relaxed(m + ERROR_AT) != 0


@inner
def end_launch(m: int) -> None:
    """Wait for the rank's other threads, as a stream does between two kernels."""
    h = machine(m)
    atomics.fence_release()
    generation = atomics.load_acquire(m + GENERATION_AT)
    if atomics.add_acq_rel(m + ARRIVED_AT, 1) == h.num_threads - 1:
        atomics.store_relaxed(m + ARRIVED_AT, 0)
        atomics.store_release(m + GENERATION_AT, generation + 1)
        return
    # A thread whose block has failed arrives here, too: nobody waits for ever.
    while atomics.load_acquire(m + GENERATION_AT) == generation:
        atomics.yield_thread()


@inner
def meet(m: int) -> None:
    """Wait until every rank's first thread is here, so that they begin at once.

    The word counts those that came, but not those that left because not all did: between programs
    it is a multiple of the world's size, whatever failed.
    """
    h = machine(m)
    word = base_of(m, 0) + h.rendezvous
    goal = (atomics.add_acq_rel(word, 1) // h.world_size + 1) * h.world_size
    begun = atomics.monotonic_ns()
    while True:
        num_came = atomics.load_acquire(word)
        if num_came >= goal:
            return
        if is_ended(m) or atomics.monotonic_ns() - begun > h.limit_ns:
            if atomics.compare_exchange(word, num_came, num_came - 1) == num_came:
                break
        else:
            atomics.yield_thread()
    if atomics.claim(m + ERROR_AT, TIMEOUT) == 0:
        h.error_warp = -1
        atomics.claim(h.abort, h.rank + 1)


def run_program(m: int, sm: int) -> None:
    """Run this SM's part of every launch; `compiled_program` compiles it."""
    h = machine(m)
    for launch in range(h.num_launches):
        work = launch_at(m, launch)
        if not is_ended(m):
            stamp = stamp_at(m, launch, sm)
            stamp.start_ns = atomics.monotonic_ns()
            if work.entry != 0:
                if sm < work.num_blocks:
                    run_block(m, sm, launch)
            elif sm == 0:
                meet(m)
            atomics.fence_release()
            stamp.end_ns = atomics.monotonic_ns()
        end_launch(m)


@cache
def compiled_program() -> Callable[[int, int], None]:
    """Return `run_program` compiled, from the disk where it is there; it releases the GIL."""
    install_switch()
    use_cache()
    compiled: Callable[[int, int], None] = njit(
        "void(int64, int64)", cache=True, nogil=True, pipeline_class=WholeCompiler
    )(run_program)
    return compiled
