"""Sentences about kernels that cannot go on: which warp waits where for which flag."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.memory import Layout, Windows
from comms.sim import state
from comms.waits import describe_flag, describe_place, describe_waits

if TYPE_CHECKING:
    from comms.sim.engine import Launch

_ERRORS = {
    state.OUT_OF_BOUNDS: "accesses rank {a} at {place}",
    state.TOO_LONG: "copies {a} bytes at once, more than the {b} that one instruction may move",
    state.NOT_REACHABLE: "addresses rank {a}, to which this instruction has no path "
    "(loads and stores reach the own node, puts reach other nodes along allowed rails)",
    state.EXCEPTION: "raised an exception (division by zero or an index out of range)",
    state.POOL_EMPTY: "found no room for one more transfer",
    state.BAD_RANK: "addresses rank {a}, which does not exist",
    state.BAD_CHANNEL: "uses channel {a}, there are {b}",
    state.TOO_MANY_ROWS: "puts {a} rows by one request, which has room for {b}",
    state.BAD_GROUP: "synchronises with group {a}: groups go from 1 to "
    f"{state.NUM_GROUPS - 1}, and a warp stays in one",
}


def _where(warp: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    sm = arrays["blocks"]["sm"][warp["block"]]
    return f"rank {warp['rank']} sm {sm} warp {warp['index']}"


def _launch(
    arrays: Mapping[str, npt.NDArray[Any]], warp: Any, launches: Sequence["Launch"]
) -> "Launch":
    return launches[int(arrays["ranks"]["launch"][warp["rank"]])]


def describe_error(
    arrays: Mapping[str, npt.NDArray[Any]], layout: Layout, launches: Sequence["Launch"]
) -> str:
    """Say what a kernel did that stopped the engine."""
    h = arrays["header"][0]
    warp = arrays["warps"][h["error_warp"]]
    text = _ERRORS[int(h["error"])]
    sentence = text.format(
        a=h["error_a"], b=h["error_b"], place=layout.describe_outside(int(h["error_b"]))
    )
    return f"{_launch(arrays, warp, launches).name}: {_where(warp, arrays)} {sentence}"


def describe_blocked(
    arrays: Mapping[str, npt.NDArray[Any]], windows: Windows, launches: Sequence["Launch"]
) -> str:
    """Name every kind of blocked warp: source line, flag, value seen and value wanted."""
    h = arrays["header"][0]
    in_launch = np.zeros(len(arrays["warps"]), bool)
    for rank in np.flatnonzero(arrays["ranks"]["live_warps"] > 0):
        first = rank * h["warps_per_rank"]
        launch = launches[int(arrays["ranks"]["launch"][rank])]
        in_launch[first : first + launch.num_blocks * launch.num_warps] = True
    blocked = np.flatnonzero(in_launch & (arrays["warps"]["state"] != state.DONE))
    waits = [_describe_warp(arrays, windows, int(index)) for index in blocked]
    cause = (
        "deadlock" if h["heap_size"] == 0 else "no end within the limit of virtual time or events"
    )
    return describe_waits(f"{cause} at {h['now'] / 1e6:.1f} us of virtual time", waits)


def _describe_warp(
    arrays: Mapping[str, npt.NDArray[Any]], windows: Windows, index: int
) -> tuple[str, str]:
    warp = arrays["warps"][index]
    line = describe_place(int(warp["line"]))
    if warp["state"] == state.WAIT_GE:
        offset = int(warp["wait_offset"])
        seen = windows.word(int(warp["rank"]), offset)
        flag = windows.layout.describe(offset)
        what = describe_flag(line, flag, int(warp["wait_value"]), seen)
    elif warp["state"] == state.WAIT_ANY:
        flag = windows.layout.describe(int(warp["wait_offset"]))
        what = f"{line} waits for any of {warp['wait_count']} words from {flag}"
    elif warp["state"] == state.BLOCK_SYNC:
        what = f"{line} waits for the other warps of its block"
    elif warp["state"] == state.GROUP_SYNC:
        what = f"{line} waits for the other warps of its group"
    else:
        what = f"waits for {state.STATE_NAMES[int(warp['state'])]}"
        if warp["line"]:
            what = f"{line} {what}"
    return _where(warp, arrays), what
