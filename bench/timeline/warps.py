"""What the warps of a launch did: their stages, and their waits by what and where."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.timeline.busy import Busy
from bench.timeline.passing import passing
from comms.sim.timeline import UNMARKED, Records, Timeline

Numbers = npt.NDArray[np.int64]
_INDEX = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time of all warps in a stage, of it waiting, and of it with rows passing their SM."""

    stage: str
    total_ps: int
    wait_ps: int
    pass_ps: int


@dataclass(frozen=True, slots=True)
class WaitTime:
    """Waits of all warps for the same at the same place.

    Attributes:
        what: name of the flags without an index, or what else was waited for.
        place: source line.
        total_ps: time of all of them.
        count: how many.
        longest_ps: the longest.
        flag: the flag that most of the time was spent on, with its index.
    """

    what: str
    place: str
    total_ps: int
    count: int
    longest_ps: int
    flag: str


class Warps:
    """The recorded warps of one launch.

    Attributes:
        stages: a row per stage of a warp: rank, begin, end, stage.
        waits: a row per wait: rank, begin, end, stage, `flag` with its index or what else it was
            for, `what` without the index, and `place` in the source.
        passes: a row per stretch in which rows passed the SM and their warp did not wait: rank,
            begin, end, stage.
    """

    def __init__(self, timeline: Timeline, launch: int) -> None:
        stages = _of_launch(timeline.stages, launch)
        # Warps follow each other on one axis of time, where none of them reaches into the next.
        warps = np.unique(_warp_number(stages))
        span = int(timeline.end_ps.max()) + 1

        def place(records: Records) -> Numbers:
            offset = np.searchsorted(warps, _warp_number(records)) * span
            return np.asarray(offset + records["begin"], np.int64)

        stages = stages[np.argsort(place(stages))]
        begins = place(stages)
        codes = stages["code"].tolist()
        # The last is that of records before any stage: of a launch that stopped before a mark.
        named = [timeline.stage_name(launch, code) for code in (*codes, UNMARKED)]
        names = np.array(named, object)

        def frame(records: Records, **columns: npt.ArrayLike) -> pd.DataFrame:
            stage = names[np.searchsorted(begins, place(records), side="right") - 1]
            fields = {name: records[name] for name in ("rank", "begin", "end")}
            return pd.DataFrame({**fields, "stage": stage, **columns})

        waits = _of_launch(timeline.waits, launch)
        flags = timeline.wait_names(waits).tolist()
        places = [short_place(place) for place in timeline.wait_places(waits).tolist()]
        what = [_INDEX.sub("", flag) for flag in flags]
        self.stages = frame(stages)
        self.waits = frame(waits, flag=flags, what=what, place=places)
        self.passes = frame(_of_launch(passing(timeline), launch))

    @property
    def total_ps(self) -> int:
        """Time of all warps from the begin of the launch to their ends."""
        return int((self.stages["end"] - self.stages["begin"]).sum())

    def stage_times(self) -> list[StageTime]:
        """Return how long warps were in each stage, the longest first."""
        sums = [
            _lengths(frame).groupby(frame["stage"]).sum()
            for frame in (self.stages, self.waits, self.passes)
        ]
        table = pd.concat(sums, axis=1, keys=["total", "wait", "pass"]).fillna(0)
        found = [StageTime(str(name), *map(int, row)) for name, *row in table.itertuples()]
        return sorted(found, key=lambda stage: -stage.total_ps)

    def wait_times(self) -> list[WaitTime]:
        """Return how long warps waited for what and where, the longest first."""
        lengths = self.waits.assign(ps=_lengths(self.waits))
        found = []
        for (what, place), group in lengths.groupby(["what", "place"]):
            by_flag = group.groupby("flag")["ps"].sum()
            total, longest = int(group["ps"].sum()), int(group["ps"].max())
            flag = str(by_flag.idxmax())
            found.append(WaitTime(str(what), str(place), total, len(group), longest, flag))
        return sorted(found, key=lambda wait: -wait.total_ps)

    def meanwhile(self, rank: int, times: Busy) -> list[tuple[str, float]]:
        """Return what the warps of a rank did in some times, as parts of their time, most first."""
        stages, waits, passes = (
            self._inside(frame, rank, times) for frame in (self.stages, self.waits, self.passes)
        )
        total = stages["ps"].sum()
        if not total:
            return []
        doing: dict[str, float] = {}
        for what, place, ps in zip(waits["what"], waits["place"], waits["ps"], strict=True):
            name = f"wait for {what}{f' at {place}' if place else ''}"
            doing[name] = doing.get(name, 0.0) + ps / total
        for stage, ps in passes.groupby("stage")["ps"].sum().items():
            doing[f"rows pass the SM in {stage}"] = ps / total
        known = pd.concat([waits, passes]).groupby("stage")["ps"].sum()
        rest = stages.groupby("stage")["ps"].sum().sub(known, fill_value=0)
        doing |= {f"else in {stage}": ps / total for stage, ps in rest.items()}
        parts = ((name, float(part)) for name, part in doing.items() if part > 0)
        return sorted(parts, key=lambda part: -part[1])

    def _inside(self, frame: pd.DataFrame, rank: int, times: Busy) -> pd.DataFrame:
        own = frame[frame["rank"] == rank]
        return own.assign(ps=times.between(own["begin"].to_numpy(), own["end"].to_numpy()))


def short_place(place: str) -> str:
    """Return a place with its path from here, or its file's name where it lies elsewhere."""
    if not place:
        return ""
    path = Path(place)
    here = Path(os.path.relpath(path))
    return path.name if here.parts[0] == ".." else str(here)


def _of_launch(records: Records, launch: int) -> Records:
    own: Records = records[records["launch"] == launch]
    return own


def _warp_number(records: Records) -> Numbers:
    return np.asarray(records["rank"] << 32 | records["sm"] << 16 | records["warp"], np.int64)


def _lengths(frame: pd.DataFrame) -> "pd.Series[int]":
    return frame["end"] - frame["begin"]
