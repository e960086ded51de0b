"""Sentences about programs that ended early: what a warp did, or where warps wait."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.cpu import state
from comms.cpu.program import Launch
from comms.memory import AnyWindows
from comms.waits import describe_flag, describe_place

_ERRORS = {
    state.OUT_OF_BOUNDS: "accesses rank {a} at {place}",
    state.BAD_RANK: "addresses rank {a}, which does not exist",
    state.NOT_REACHABLE: "addresses rank {a}, to which this instruction has no path "
    "(loads and stores reach the own node, puts reach other nodes)",
    state.TOO_MANY_ROWS: "puts {a} rows by one request, which has room for {b}",
    state.BAD_GROUP: "synchronises with group {a}: groups go from 1 to "
    f"{state.NUM_GROUPS - 1}, and a warp stays in one",
    state.EXCEPTION: "raised an exception (division by zero or an index out of range)",
}

Arrays = Mapping[str, npt.NDArray[Any]]


def describe_error(arrays: Arrays, windows: AnyWindows, launches: Sequence[Launch]) -> str:
    """Say what a warp did that ended the program."""
    h = arrays["machine"][0]
    warp = arrays["warps"][h["error_warp"]]
    place = windows.layout.describe_outside(int(h["error_b"]))
    sentence = _ERRORS[int(h["error"])].format(a=h["error_a"], b=h["error_b"], place=place)
    launch = launches[int(arrays["blocks"]["launch"][warp["block"]])]
    return f"{launch.name}: {_where(arrays, warp)} {sentence}"


def blocked_warps(
    arrays: Arrays, windows: AnyWindows, launches: Sequence[Launch]
) -> list[tuple[str, str]]:
    """Return where each warp is that had not ended, and what it waits for."""
    found = []
    for block in arrays["blocks"][arrays["blocks"]["num_live"] > 0]:
        launch = launches[int(block["launch"])]
        first = int(block["first_warp"])
        for warp in arrays["warps"][first : first + int(block["num_warps"])]:
            if warp["state"] != state.DONE:
                found.append((_where(arrays, warp), _what(warp, launch, arrays, windows)))
    return found


def _where(arrays: Arrays, warp: np.void) -> str:
    rank = arrays["machine"]["rank"][0]
    return f"rank {rank} sm {warp['block']} warp {warp['index']}"


def _what(warp: np.void, launch: Launch, arrays: Arrays, windows: AnyWindows) -> str:
    line = describe_place(int(warp["line"]))
    offset = int(warp["wait_offset"])
    if warp["state"] == state.WAIT_GE:
        seen = windows.word(int(arrays["machine"]["rank"][0]), offset)
        flag = windows.layout.describe(offset)
        return describe_flag(line, flag, int(warp["wait_value"]), seen)
    if warp["state"] == state.WAIT_ANY:
        flag = windows.layout.describe(offset)
        return f"{line} waits for any of {warp['wait_count']} words from {flag}"
    if warp["state"] == state.SPIN:
        return f"{launch.source} loads {windows.layout.describe(offset)} again and again"
    if warp["state"] == state.BLOCK_SYNC:
        return f"{line} waits for the other warps of its block"
    if warp["state"] == state.GROUP_SYNC:
        return f"{line} waits for the other warps of its group"
    return f"{launch.source} waits for its turn"
