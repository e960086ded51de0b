"""What bounded each launch of a recorded run, and where its busiest port idled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.timeline.busy import Busy
from bench.timeline.warps import StageTime, WaitTime, Warps
from comms.sim.record import COPY_PIPE, REDUCE_PIPE
from comms.sim.state import HBM, NIC_IN, NIC_OUT, NVL_IN, NVL_OUT
from comms.sim.timeline import Timeline

PORT_NAMES = {
    NVL_OUT: "NVLink out",
    NVL_IN: "NVLink in",
    NIC_OUT: "NIC out",
    NIC_IN: "NIC in",
    HBM: "HBM",
}
PIPE_NAMES = {COPY_PIPE: "SM copy pipes", REDUCE_PIPE: "SM sum pipes"}
#: What is busy for so much of a launch's middle bounds it.
BOUND_SHARE = 0.85
#: The middle of a launch: without its first and last fifth, where it fills and drains.
_MIDDLE = (0.2, 0.8)
_NUM_GAPS = 4
_PS_PER_US = 10**6
_NUM_DOINGS = 3


@dataclass(frozen=True, slots=True)
class Use:
    """How busy ports of a kind were, or the pipes of a rank's SMs together.

    Attributes:
        name: of the port or pipe.
        mean: part of the launch that it was busy, mean over the ranks.
        most: of the busiest rank.
        rank: that rank.
        middle: part of the launch's middle, the busiest rank's in it.
        num_bytes: bytes of the busiest rank.
    """

    name: str
    mean: float
    most: float
    rank: int
    middle: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which the busiest port idled.

    Attributes:
        begin_us: from the begin of the launch.
        length_us: how long.
        meanwhile: what the warps of its rank did.
    """

    begin_us: float
    length_us: float
    meanwhile: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Idle:
    """When the busiest port idled, in parts of the launch.

    Attributes:
        port: its name.
        rank: its rank, the critical one.
        before: before its first byte.
        between: between bytes.
        after: after its last byte.
        num_between: stretches of that.
        meanwhile: what the warps of its rank did in all of that, and which part of their time.
        gaps: the longest stretches of all.
    """

    port: str
    rank: int
    before: float
    between: float
    after: float
    num_between: int
    meanwhile: list[tuple[str, float]]
    gaps: list[Gap]


@dataclass(frozen=True, slots=True)
class LaunchSummary:
    """What one launch came to.

    Attributes:
        name: of the launch.
        time_us: from the first rank's begin to the last one's end.
        last_rank: the rank that ended last.
        verdict: what bounded it, in words.
        uses: by kind of port, then of pipe; those that moved nothing are left out.
        idle: when the busiest port idled, None where no port moved anything.
        total_ps: time of all warps.
        stages: time of its warps by stage, the longest first.
        waits: what they waited for, the longest first.
    """

    name: str
    time_us: float
    last_rank: int
    verdict: str
    uses: list[Use]
    idle: Idle | None
    total_ps: int
    stages: list[StageTime]
    waits: list[WaitTime]


def summarize(timeline: Timeline) -> list[LaunchSummary]:
    """Return what each launch that began came to."""
    began = np.flatnonzero((timeline.start_ps >= 0).any(axis=1))
    return [_launch(timeline, int(launch)) for launch in began]


def port_busy(timeline: Timeline) -> dict[tuple[int, int], Busy]:
    """Return when each port was busy, by (rank, port); ports that moved nothing are left out."""
    uses = {
        (rank, port): Busy(*timeline.port_use(rank, port))
        for rank in timeline.ranks
        for port in PORT_NAMES
    }
    return {key: busy for key, busy in uses.items() if len(busy.spans.begin)}


def _launch(timeline: Timeline, launch: int) -> LaunchSummary:
    start, end = timeline.start_ps[launch], timeline.end_ps[launch]
    window = int(start[start >= 0].min()), int(end.max())
    busy = port_busy(timeline)
    uses: list[Use] = []
    idle = None
    warps = Warps(timeline, launch)
    for port, name in PORT_NAMES.items():
        of_rank = {rank: [one] for (rank, kind), one in busy.items() if kind == port}
        use = _use(name, of_rank, window)
        if not use.num_bytes:
            continue
        if not uses or use.most > max(one.most for one in uses):
            idle = _idle(busy[use.rank, port], warps, use, window)
        uses.append(use)
    sms = range(timeline.launches[launch].num_blocks)
    for pipe, name in PIPE_NAMES.items():
        pipes = {
            rank: [Busy(*timeline.pipe_use(rank, sm, pipe)) for sm in sms]
            for rank in timeline.ranks
        }
        use = _use(name, pipes, window)
        if use.num_bytes:
            uses.append(use)
    stages, waits = warps.stage_times(), warps.wait_times()
    return LaunchSummary(
        name=timeline.launches[launch].name,
        time_us=(window[1] - window[0]) / _PS_PER_US,
        last_rank=int(end.argmax()),
        verdict=_verdict(uses, stages, waits),
        uses=uses,
        idle=idle,
        total_ps=warps.total_ps,
        stages=stages,
        waits=waits,
    )


def _use(name: str, of_rank: dict[int, list[Busy]], window: tuple[int, int]) -> Use:
    """Sum up ports of a kind, or the pipes of each rank's SMs."""
    begin, end = window
    middle = [begin + int((end - begin) * part) for part in _MIDDLE]
    shares = {
        rank: float(np.mean([one.share(begin, end) for one in parts]))
        for rank, parts in of_rank.items()
    }
    if not shares:
        return Use(name, 0.0, 0.0, -1, 0.0, 0)
    rank = max(shares, key=lambda rank: shares[rank])
    return Use(
        name=name,
        mean=float(np.mean(list(shares.values()))),
        most=shares[rank],
        rank=rank,
        middle=float(np.mean([one.share(*middle) for one in of_rank[rank]])),
        num_bytes=sum(one.bytes_between(begin, end) for one in of_rank[rank]),
    )


def _verdict(uses: list[Use], stages: list[StageTime], waits: list[WaitTime]) -> str:
    full = [use for use in uses if use.middle >= BOUND_SHARE]
    if full:
        names = (
            f"{use.name} ({percent(use.middle)} of the middle, rank {use.rank})" for use in full
        )
        return f"bound by {' and '.join(names)}"
    text = "bound by no port and no pipe"
    if uses:
        top = max(uses, key=lambda use: use.middle)
        text += f" (most: {top.name}, {percent(top.middle)} of the middle, rank {top.rank})"
    total = sum(stage.total_ps for stage in stages)
    if not total:
        return text
    waiting = sum(stage.wait_ps for stage in stages) / total
    passing = sum(stage.pass_ps for stage in stages) / total
    text += f"; warps wait {percent(waiting)} of their time"
    if waits:
        text += f", {percent(waits[0].total_ps / total)} for {waits[0].what} at {waits[0].place}"
    return f"{text}; their rows pass the SMs in {percent(passing)}"


def percent(part: float) -> str:
    """Return a part of a whole in percent."""
    return f"{100 * part:.1f} %"


def _idle(busy: Busy, warps: Warps, use: Use, window: tuple[int, int]) -> Idle:
    begin, end = window
    gaps = busy.gaps(begin, end)
    before = [gap for gap in gaps if gap[0] == begin]
    after = [gap for gap in gaps if gap[1] == end]
    between = [gap for gap in gaps if gap[0] > begin and gap[1] < end]
    longest = sorted(gaps, key=lambda gap: gap[0] - gap[1])[:_NUM_GAPS]

    def doing(some: list[tuple[int, int]]) -> list[tuple[str, float]]:
        return warps.meanwhile(use.rank, Busy.of(some))[:_NUM_DOINGS]

    def part(some: list[tuple[int, int]]) -> float:
        return sum(b - a for a, b in some) / (end - begin)

    return Idle(
        port=use.name,
        rank=use.rank,
        before=part(before),
        between=part(between),
        after=part(after),
        num_between=len(between),
        meanwhile=doing(gaps),
        gaps=[
            Gap((a - begin) / _PS_PER_US, (b - a) / _PS_PER_US, doing([(a, b)])) for a, b in longest
        ],
    )
