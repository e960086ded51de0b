"""Fits the constants of SMs, NVLink's acknowledgements, NICs and launches to the rows about V1.

    python -m bench.fitting.sm [--check] [--write]

Four constants on twelve rows of `bench/fitting/data/calibration.csv`. The objective is the sum of
squares of log(simulated time / published time) over the rows that fix a constant; each evaluation
runs the kernels at the rows' sizes on the simulator. From the planning values each constant in turn
moves by its step, then by more of them, while that makes the sum less, until no single step does:

- `ldst.copy_gbs`, the rate of an SM that sends, and `write_ack_bytes`, what acknowledges 128 B
  stored over NVLink: the six rows of `ring`. With 8 SMs of an H100 four SMs send and no link is
  full, which fixes the first; with 24 SMs of an H800 the link is, which fixes the second; 24 SMs of
  an H100 are between the two.
- `low_latency.fixed_us`: then the two low-latency rows of one node.
- `nic.payload_gbs`: then the four rows of eight nodes, whose NICs are full.

To run all rows takes minutes, so their times with the committed constants and one step beside them
are kept in `data/kept.json`, by which a test sees that no step is better.

The committed constants are what a search found. They stay while no search finds any that are better
by more than noise.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import msgspec

from bench.fitting.tried import NOISE, START, Constants, committed, descend, neighbours
from bench.traffic.bounds import HalfOp
from bench.validation.calibration import Point, read_points
from bench.validation.question import Question
from bench.validation.simulated import simulate

KEPT = Path(__file__).parent / "data" / "kept.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """Constants and the rows that fix them.

    Attributes:
        names: the constants.
        kernels: whose rows.
        several_nodes: whether the rows of several nodes, or those of one.
    """

    names: tuple[str, ...]
    kernels: tuple[str, ...]
    several_nodes: bool = False

    def points(self) -> list[Point]:
        """Return the rows."""
        return [
            point
            for point in read_points()
            if point.question.kernel in self.kernels
            and (point.question.nodes > 1) is self.several_nodes
        ]


RINGS = Stage(("copy_gbs", "ack_bytes"), ("ring",))
LOW_LATENCY = Stage(("fixed_us",), ("low_latency",))
SEVERAL_NODES = Stage(("nic_gbs",), ("ring_two_hop", "low_latency"), several_nodes=True)
STAGES = (RINGS, LOW_LATENCY, SEVERAL_NODES)


class Trials:
    """Simulated and published times of rows, each run once for what it hangs on."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = tuple(points)
        self._times: dict[tuple[Question, Constants], dict[HalfOp, tuple[float, float]]] = {}

    def among(self, stage: "Stage") -> "Trials":
        """Return the rows of a stage with the runs that were made here, and will be."""
        some = Trials(stage.points())
        some._times = self._times
        return some

    def times_us(self, point: Point, tried: Constants) -> tuple[float, float]:
        """Return the simulated and the published time of a row."""
        question = point.question
        # What a run does not hang on is the same for all.
        nic_gbs = tried.nic_gbs if question.nodes > 1 else START.nic_gbs
        key = replace(tried, fixed_us=0.0, nic_gbs=nic_gbs)
        if (question, key) not in self._times:
            self._times[question, key] = self._run(question, key)
        simulated, published = self._times[question, key][point.op]
        if question.kernel == "low_latency":
            simulated += tried.fixed_us
        return simulated, published

    def objective(self, tried: Constants) -> float:
        """Return the sum of squares of log(simulated / published)."""
        pairs = [self.times_us(point, tried) for point in self.points]
        return sum(math.log(simulated / published) ** 2 for simulated, published in pairs)

    def rms(self, tried: Constants) -> float:
        """Return the root mean square of log(simulated / published)."""
        return math.sqrt(self.objective(tried) / len(self.points))

    def _run(self, question: Question, tried: Constants) -> dict[HalfOp, tuple[float, float]]:
        asked = {point.op: point for point in self.points if point.question == question}
        ops: list[HalfOp] = [op for op in ("dispatch", "combine") if op in asked]
        answers = simulate(question, ops, fabric=tried.fabric(question.gpu), fixed_us=0.0)
        return {
            op: (answer.time_us, asked[op].published_us(answer.traffic))
            for op, answer in answers.items()
        }


class Kept(msgspec.Struct, frozen=True):
    """The time of a row with some constants.

    Attributes:
        row: its label.
    """

    copy_gbs: float
    ack_bytes: float
    fixed_us: float
    nic_gbs: float
    row: str
    simulated_us: float
    published_us: float

    @property
    def tried(self) -> Constants:
        """The constants."""
        return Constants(self.copy_gbs, self.ack_bytes, self.fixed_us, self.nic_gbs)


class KeptTrials(Trials):
    """Rows of a stage with the times of the file, and no others."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.points())
        self._kept = {
            (one.row, one.tried): (one.simulated_us, one.published_us) for one in read_kept()
        }

    def times_us(self, point: Point, tried: Constants) -> tuple[float, float]:
        """Return the kept times of a row.

        Raises:
            KeyError: these constants were not kept.
        """
        return self._kept[point.row.label, tried]


def keep(trials: Trials, stage: Stage, found: Constants) -> list[Kept]:
    """Return the times of a stage's rows with some constants and one step beside them."""
    return [
        Kept(**asdict(tried), row=point.row.label, simulated_us=simulated, published_us=published)
        for tried in (found, *neighbours(found, stage.names))
        for point in trials.points
        for simulated, published in [trials.times_us(point, tried)]
    ]


def read_kept() -> list[Kept]:
    """Return the times of the file."""
    return msgspec.json.decode(KEPT.read_bytes(), type=list[Kept])


def is_fixed_point(trials: Trials, stage: Stage, tried: Constants) -> bool:
    """Return whether no step of a stage's constants makes its residuals less, beyond noise."""
    least = trials.rms(tried) - NOISE
    return all(trials.rms(other) >= least for other in neighbours(tried, stage.names))


def are_as_good(trials: Sequence[Trials], tried: Constants, found: Constants) -> bool:
    """Return whether constants leave no larger residuals than others in any stage, beyond noise."""
    return all(trial.rms(tried) <= trial.rms(found) + NOISE for trial in trials)


def table(trials: Sequence[Trials], tried: Constants) -> str:
    """Return every row with its simulated time and the residual."""
    lines = [
        f"{'row of data/calibration.csv':52}{'published':>12}{'simulated':>12}{'residual':>10}"
    ]
    for trial in trials:
        for point in trial.points:
            simulated, published = trial.times_us(point, tried)
            residual = 100 * (simulated / published - 1)
            lines.append(
                f"{point.row.label:52}{published:9.1f} us{simulated:9.1f} us{residual:+9.1f}%"
            )
    return "\n".join(lines)


@click.command()
@click.option("--check", is_flag=True, help="Fail where the committed constants fit worse.")
@click.option(
    "--write", is_flag=True, help="Keep the times by which a test sees that no step is better."
)
def main(check: bool, write: bool) -> None:
    """Fit four constants to the twelve published rows about V1's kernels."""
    found, done = START, []
    for stage in STAGES:
        done.append(Trials(stage.points()))
        found = descend(done[-1].objective, found, stage.names)
    click.echo(table(done, found))
    click.echo(
        f"ldst.copy_gbs = {found.copy_gbs:g}, write_ack_bytes = {found.ack_bytes:g}, "
        f"low_latency.fixed_us = {found.fixed_us:g}, nic.payload_gbs = {found.nic_gbs:g}"
    )
    if write:
        pairs = zip(done, STAGES, strict=True)
        kept = [one for trial, stage in pairs for one in keep(trial, stage, committed())]
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    if check and not are_as_good(done, committed(), found):
        click.echo(f"bench.fitting.sm: committed are {committed()}, which fit worse", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
