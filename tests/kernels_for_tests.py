"""One kernel for all tests of the engine: it runs a list of instructions from local memory.

Fetching an instruction takes no virtual time, so a test's program costs what its instructions cost.
"""

from typing import NamedTuple

from helpers_for_tests import wait_for

from kernels import isa
from kernels.isa import Part, RowList

#: Words of an instruction: what it does, and its operands.
STEP_WORDS = 8
(
    PAUSE,
    COPY_ROW,
    COPY_ROW_BULK,
    STORE,
    STORE_RELEASE,
    ADD,
    FETCH_ADD,
    LOAD,
    LOAD_ACQUIRE,
    SPIN,
    WAIT_GE,
    WAIT_ANY,
    BLOCK_SYNC,
    FENCE,
    PUT_ROW,
    PUT_SIGNAL,
    PUT_WAIT,
    REDUCE_ROWS,
    PEEK,
    POKE,
    DIVIDE,
    SPIN_RELAXED,
    MARK,
    GROUP_SYNC,
    MIN_WORDS,
    WAIT_ALL,
    SCAN_WORDS,
    REDUCE_COLUMNS,
    PUT_ROWS,
) = range(29)


class Params(NamedTuple):
    """Parameters of `interpret`: `programs_addr` is of int64 `(num_sms * num_warps, 2)`.

    Each row holds the address of a warp's first instruction and their number.
    """

    num_warps: int
    programs_addr: int


def interpret(p: Params) -> None:
    """Run this warp's instructions in order."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    at = isa.load_i64(p.programs_addr + 16 * worker)
    num_steps = isa.load_i64(p.programs_addr + 16 * worker + 8)
    for step in range(num_steps):
        run_step(at + 8 * STEP_WORDS * step)


def run_step(at: int) -> None:
    """Run the instruction at a local address."""
    what = isa.load_i64(at)
    a, b = isa.load_i64(at + 8), isa.load_i64(at + 16)
    c, d, e = isa.load_i64(at + 24), isa.load_i64(at + 32), isa.load_i64(at + 40)
    if what == PAUSE:
        isa.pause(a)
    elif what == COPY_ROW:
        isa.copy_row(a, b, c, d)
    elif what == COPY_ROW_BULK:
        isa.copy_row_bulk(a, b, c, d)
    elif what == STORE:
        isa.store(a, b, c)
    elif what == STORE_RELEASE:
        isa.store_release(a, b, c)
    elif what == ADD:
        isa.add(a, b, c)
    elif what == FETCH_ADD:
        isa.store_i64(d, isa.fetch_add(a, b, c))
    elif what == LOAD:
        isa.store_i64(b, isa.load(a))
    elif what == LOAD_ACQUIRE:
        isa.store_i64(b, isa.load_acquire(a))
    elif what == SPIN:
        while isa.load_acquire(a) < b:
            pass
    elif what == WAIT_GE:
        seen = isa.wait_ge(a, b)
        if c != 0:
            isa.store_i64(c, seen)
    elif what == PUT_ROWS:
        isa.put_rows(a, b, RowList(c, 0, d, e, isa.load_i64(at + 48)), isa.load_i64(at + 56))
    elif what == WAIT_ANY:
        isa.store_i64(e, isa.wait_any(a, b, c, d, isa.load_i64(at + 48)))
    elif what == BLOCK_SYNC:
        isa.block_sync()
    elif what == FENCE:
        isa.fence_release()
    elif what == PUT_ROW:
        isa.put_row(a, b, c, d, e)
    elif what == PUT_SIGNAL:
        isa.put_signal(a, b, c, d)
    elif what == PUT_WAIT:
        isa.put_wait(a)
    elif what == REDUCE_ROWS:
        isa.reduce_rows(a, RowList(b, c, d, e, isa.load_i64(at + 48)))
    elif what == PEEK:
        isa.store_i64(b, isa.load_i64(a))
    elif what == POKE:
        isa.store_i64(a, b)
    elif what == SPIN_RELAXED:
        while isa.load(a) < b:
            pass
    elif what == MARK:
        isa.mark(a)
    elif what == GROUP_SYNC:
        isa.group_sync(a, b)
    elif what == MIN_WORDS:
        isa.store_i64(d, isa.min_words(a, b, c))
    elif what == WAIT_ALL:
        isa.wait_all(a, b, c, d)
    elif what == SCAN_WORDS:
        isa.scan_words(a, b, c)
    elif what == REDUCE_COLUMNS:
        rows = RowList(b, 0, c, d, e)
        isa.reduce_columns_weighted(
            a, rows, isa.load_i64(at + 48), Part(isa.warp_id(), isa.load_i64(at + 56))
        )
    elif what == DIVIDE:
        isa.pause(a // b)


def two_waits(p: Params) -> None:
    """Wait for two flags in one order on rank 0 and in the other elsewhere, then pass them on."""
    rank, first, second = p.num_warps, p.programs_addr, p.programs_addr + 8
    if rank == 0:
        isa.wait_ge(first, 1)
        isa.store_release(1, second, 1)
    else:
        isa.wait_ge(second, 1)
        isa.store_release(0, first, 1)


FIRST, SECOND = range(2)


def in_stages(p: Params) -> None:
    """Wait for a flag in a helper of another file, between two stages that have names."""
    isa.mark(FIRST)
    wait_for(p.programs_addr)
    isa.mark(SECOND)
