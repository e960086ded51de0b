"""State of one rank's machine: one header record and the structured arrays it points to.

Only the rank's own threads read it, and but for `arrived`, `generation` and the error fields
each record has one thread that writes it. Ranks share nothing but their windows and the abort
word. Times are nanoseconds of CLOCK_MONOTONIC, -1 is "none".
"""

from typing import Any

import numpy as np
from numba import carray

from comms.compiling import inner
from comms.raw import as_pointer, record_at

#: States of a warp.
READY, WAIT_GE, WAIT_ANY, SPIN, BLOCK_SYNC, GROUP_SYNC, PAUSE, DONE = range(8)

#: Why a program ended early; `ABORTED` is another rank's reason.
(
    OK,
    ABORTED,
    TIMEOUT,
    OUT_OF_BOUNDS,
    BAD_RANK,
    NOT_REACHABLE,
    EXCEPTION,
    BAD_GROUP,
    TOO_MANY_ROWS,
) = range(9)


def _record(*fields: str) -> np.dtype[Any]:
    return np.dtype([(field, np.int64) for field in fields])


MACHINE = _record(
    *("rank", "world_size", "ranks_per_node", "bases", "window_bytes", "pages", "regions"),
    *("abort", "limit_ns", "start_address", "stacks", "stack_bytes", "scratch", "scratch_bytes"),
    *(
        "blocks",
        "groups",
        "warps",
        "launches",
        "num_launches",
        "stamps",
        "num_threads",
        "max_warps",
    ),
    *("arrived", "generation", "rendezvous"),
    *("error", "error_warp", "error_a", "error_b"),
)
BLOCK = _record(
    *("sm", "first_warp", "num_warps", "num_live", "num_arrived", "generation"),
    *("idle", "main_rsp", "launch"),
)
WARP = _record(
    *("block", "index", "state", "context", "line", "since_ns"),
    *("wait_offset", "wait_value", "wait_count", "group"),
)
GROUP = _record("num_arrived", "generation")
LAUNCH = _record("entry", "num_blocks", "num_warps", "params")
REGION = _record("offset", "num_bytes")
STAMP = _record("start_ns", "end_ns")

GROUP_BYTES = GROUP.itemsize
MACHINE_BYTES, BLOCK_BYTES, WARP_BYTES, LAUNCH_BYTES, REGION_BYTES, STAMP_BYTES = (
    dtype.itemsize for dtype in (MACHINE, BLOCK, WARP, LAUNCH, REGION, STAMP)
)


def _place(record: np.dtype[Any], field: str) -> int:
    assert record.names is not None
    return 8 * record.names.index(field)


#: Where words are in their records, for atomics and for the switch.
ERROR_AT, ARRIVED_AT, GENERATION_AT = (
    _place(MACHINE, field) for field in ("error", "arrived", "generation")
)
MAIN_RSP_AT = _place(BLOCK, "main_rsp")
#: Named barriers of a block; 0 is never used, it would be the block's own.
NUM_GROUPS = 16
#: Regions start at multiples of this, so that a page tells its region.
PAGE_SHIFT = 12


@inner
def machine(m: int) -> Any:
    """Return the header of the machine at address `m`."""
    return record_at(m, MACHINE)


@inner
def block_at(m: int, block: int) -> Any:
    """Return the record of a block."""
    return record_at(record_at(m, MACHINE).blocks + block * BLOCK_BYTES, BLOCK)


@inner
def group_at(m: int, group: int) -> Any:
    """Return the record of a named barrier, NUM_GROUPS for each block."""
    return record_at(record_at(m, MACHINE).groups + group * GROUP_BYTES, GROUP)


@inner
def warp_at(m: int, warp: int) -> Any:
    """Return the record of a warp."""
    return record_at(record_at(m, MACHINE).warps + warp * WARP_BYTES, WARP)


@inner
def launch_at(m: int, launch: int) -> Any:
    """Return the record of a launch."""
    return record_at(record_at(m, MACHINE).launches + launch * LAUNCH_BYTES, LAUNCH)


@inner
def stamp_at(m: int, launch: int, sm: int) -> Any:
    """Return when a block of a launch began and ended."""
    h = record_at(m, MACHINE)
    return record_at(h.stamps + (launch * h.num_threads + sm) * STAMP_BYTES, STAMP)


@inner
def base_of(m: int, rank: int) -> int:
    """Return the address of a rank's window in this process."""
    h = record_at(m, MACHINE)
    return carray(as_pointer(h.bases), (h.world_size,), np.int64)[rank]


@inner
def region_end(m: int, offset: int) -> int:
    """Return where the region that an offset lies in ends, -1 where there is none."""
    h = record_at(m, MACHINE)
    if offset < 0 or offset >= h.window_bytes:
        return -1
    pages = carray(as_pointer(h.pages), (h.window_bytes >> PAGE_SHIFT,), np.int16)
    region = pages[offset >> PAGE_SHIFT]
    if region < 0:
        return -1
    r = record_at(h.regions + region * REGION_BYTES, REGION)
    return r.offset + r.num_bytes
