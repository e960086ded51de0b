"""What a run recorded, decoded: waits, stages, rows in the SMs, transfers between ports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.memory import Layout, reserve
from comms.sim import state
from comms.sim.record import HOP, MARK, PASS, RECORD, WAIT
from comms.waits import describe_place

if TYPE_CHECKING:
    from comms.sim.engine import Launch

Records = npt.NDArray[Any]
#: Records of one recorder where nobody says otherwise: 0.3 GB where all are used.
MAX_RECORDS = 1 << 21
#: Stage of a warp before its first mark.
UNMARKED = -2
_WARP_OF = ("launch", "rank", "sm", "warp")


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """One run of launches in virtual picoseconds; the records are of `record.RECORD`.

    Attributes:
        launches: what ran, in order.
        layout: regions of a window, for the names of flags.
        ranks: whose warps and ports were recorded.
        start_ps: int64 `(num_launches, world_size)`, when each launch began, -1 where it did not.
        end_ps: likewise, when it ended; the end of the run where it did not end.
        is_ended: whether every rank came to its end.
        waits: in order of their begin; those that never ended have the run's end.
        stages: likewise, with `end`; `code` is `UNMARKED` before a warp's first mark.
        passes: bytes in a pipe of an SM, in order of their begin.
        hops: transfers in the order in which they arrived.
        num_dropped: records that found no room.
    """

    launches: Sequence["Launch"]
    layout: Layout
    ranks: tuple[int, ...]
    start_ps: npt.NDArray[np.int64]
    end_ps: npt.NDArray[np.int64]
    is_ended: bool
    waits: Records
    stages: Records
    passes: Records
    hops: Records
    num_dropped: int

    def stage_name(self, launch: int, stage: int) -> str:
        """Return what the source calls a stage."""
        if stage == UNMARKED:
            return "unmarked"
        return self.launches[launch].stages.get(stage, f"stage {stage}")

    def wait_names(self, waits: Records) -> npt.NDArray[np.str_]:
        """Return what each wait is for, for example `done[3]`."""
        return _names(waits[["code", "offset"]], self._wait_name)

    def wait_places(self, waits: Records) -> npt.NDArray[np.str_]:
        """Return the source line of each wait as `path:line`, empty where none is known."""
        return _names(waits["line"], lambda line: describe_place(int(line)) if line else "")

    def _wait_name(self, wait: Any) -> str:
        code = int(wait["code"])
        if code not in (state.WAIT_GE, state.WAIT_ANY):
            return state.STATE_NAMES[code]
        flag = self.layout.describe(int(wait["offset"]))
        return flag if code == state.WAIT_GE else f"one of several from {flag}"

    def port_use(self, rank: int, port: int) -> tuple[Records, Records, Records]:
        """Return when a port of a rank was busy: begin, end and bytes of each transfer, in order.

        A transfer occupies the port that it leaves from its begin on, and the port that it enters
        until it arrives.
        """
        hops = self.hops
        if port in (state.NVL_IN, state.NIC_IN):
            hops = hops[(hops["peer"] == rank) & (hops["port"] == port - 1)]
            return hops["end"] - hops["seen"], hops["end"], hops["num_bytes"]
        hops = _in_time(hops[(hops["source"] == rank) & (hops["port"] == port)])
        return hops["begin"], hops["begin"] + hops["value"], hops["num_bytes"]

    def pipe_use(self, rank: int, sm: int, pipe: int) -> tuple[Records, Records, Records]:
        """Return when a pipe of an SM was busy: begin, end and bytes of each row, in order."""
        one = self.passes
        one = one[(one["rank"] == rank) & (one["sm"] == sm) & (one["code"] == pipe)]
        return one["seen"] - one["value"], one["seen"], one["num_bytes"]


def _names(values: Records, describe: Callable[[Any], str]) -> npt.NDArray[np.str_]:
    """Describe each value, equal ones once."""
    unique, inverse = np.unique(values, return_inverse=True)
    return np.array([describe(value) for value in unique], str)[inverse]


class Recorder:
    """Records one run of the engine, in memory that is bounded."""

    def __init__(self, max_records: int = MAX_RECORDS, ranks: Sequence[int] | None = None) -> None:
        """Record at most `max_records` things of some ranks, by default of all."""
        self._memory = reserve(max_records * RECORD.itemsize).view(RECORD)
        self._ranks = ranks
        self.timeline: Timeline | None = None

    def attach(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let a run that has not begun write its records here."""
        h = arrays["header"][0]
        h["records"], h["max_records"] = self._memory.ctypes.data, len(self._memory)
        ranks = range(len(arrays["ranks"])) if self._ranks is None else self._ranks
        arrays["ranks"]["recorded"][list(ranks)] = 1

    def finish(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        launches: Sequence["Launch"],
        layout: Layout,
    ) -> None:
        """Decode what a run has left, which may have failed."""
        h = arrays["header"][0]
        records = self._memory[: int(h["num_records"])]
        now = int(h["now"])
        start, end = _launch_times(arrays, len(launches), now)
        warps = _nest(records[np.isin(records["what"], (WAIT, MARK))], now)
        self.timeline = Timeline(
            launches=launches,
            layout=layout,
            ranks=tuple(np.flatnonzero(arrays["ranks"]["recorded"]).tolist()),
            start_ps=start,
            end_ps=end,
            is_ended=not h["live_ranks"],
            waits=_in_time(warps[warps["what"] == WAIT]),
            stages=_stages(warps[warps["what"] == MARK], start, now),
            passes=records[records["what"] == PASS],
            hops=records[records["what"] == HOP],
            num_dropped=int(h["num_dropped"]),
        )


def _launch_times(
    arrays: Mapping[str, npt.NDArray[Any]], num_launches: int, now: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return when launches began and ended, also where the last ones did not."""
    ranks = arrays["ranks"]
    start = arrays["launch_starts"].reshape(num_launches, len(ranks)).copy()
    end = arrays["launch_ends"].reshape(num_launches, len(ranks)).copy()
    for rank, one in enumerate(ranks):
        at = int(one["launch"])
        start[at:, rank] = end[at:, rank] = -1
        if at < num_launches and one["live_warps"] >= 0:
            start[at, rank], end[at, rank] = one["launch_start"], now
    return start, end


def _nest(records: Records, now: int) -> Records:
    """Return marks and waits warp by warp, so that each wait lies in the stage it came in.

    A mark may be later than a wait that follows it, by what the warp owed for earlier instructions.
    """
    ordered, same = _by_warp(records)
    ordered["end"][ordered["end"] < 0] = now
    # Warps follow each other on one axis of time, where none of them reaches into the next.
    warp = np.cumsum(~np.roll(same, 1))
    span = max(int(ordered["begin"].max(initial=0)), now) + 1
    ordered["begin"] = np.maximum.accumulate(warp * span + ordered["begin"]) - warp * span
    ordered["end"] = np.maximum(ordered["end"], ordered["begin"])
    return ordered


def _by_warp(records: Records) -> tuple[Records, npt.NDArray[np.bool_]]:
    """Return records warp by warp in their order, and whether the next is of the same warp."""
    ordered = records[np.lexsort([records[name] for name in reversed(_WARP_OF)])]
    same = np.zeros(len(ordered), bool)
    same[:-1] = True
    for name in _WARP_OF:
        same[:-1] &= ordered[name][:-1] == ordered[name][1:]
    return ordered, same


def _stages(marks: Records, start_ps: npt.NDArray[np.int64], now: int) -> Records:
    """Return the stages that marks begin, each ended by the next mark of its warp."""
    ordered, same = _by_warp(marks)
    ordered["end"] = np.where(same, np.roll(ordered["begin"], -1), now)
    is_first = ~np.roll(same, 1)
    before = ordered[is_first]
    before["end"] = before["begin"]
    before["begin"] = start_ps[before["launch"], before["rank"]]
    before["code"] = UNMARKED
    stages = np.concatenate([before, ordered[ordered["code"] >= 0]])
    return _in_time(stages[stages["end"] > stages["begin"]])


def _in_time(records: Records) -> Records:
    ordered: Records = records[np.argsort(records["begin"], kind="stable")]
    return ordered
