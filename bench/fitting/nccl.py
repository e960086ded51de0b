"""Fits the two constants of the NCCL model to the two published rows about NCCL.

    python -m bench.fitting.nccl [--check]

Two constants on two rows leave no degree of freedom: the model meets both rows because it was made
to, and nothing validates it. The rows are in `bench/fitting/data/calibration.csv`. Both are a plain
all-to-all of 8 H100s: the one exchange of `nccl_like`'s combine, on a uniform traffic matrix.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from bench.fitting.calibration import Point, read_points
from bench.traffic.plan import Plan
from bench.workloads.workload import Workload
from comms.errors import EpbenchError
from comms.fabric import load_fabric
from comms.sim.engine import PS_PER_US, Outcome
from kernels.devices.base import World
from kernels.devices.sim import SimDevice
from kernels.nccl_like import DEDUP, NUM_PAIRS, constants
from kernels.protocol import Protocol
from kernels.shape import Shape

FABRIC = "h100"
PHASE = "alltoallv_back"
#: STEP_NS is fitted in these units: a few ns more or less rearrange queues by more than they cost.
STEP_UNIT_NS = 10
#: Elements of a row that really move; the exchange looks at none of them.
_PREFIX = 16


@dataclass(frozen=True, slots=True)
class Constants:
    """The fitted constants, named as in `kernels.nccl_like.constants`."""

    base_ns: int
    step_ns: int


COMMITTED = Constants(constants.BASE_NS, constants.STEP_NS)


class Exchange:
    """The all-to-all of a point on the simulator, to be timed with any constants."""

    def __init__(self, point: Point) -> None:
        size = point.world_size
        with TemporaryDirectory() as folder:
            matrix = Path(folder) / "matrix.txt"
            matrix.write_text("\n".join([" ".join([str(point.pair_bytes)] * size)] * size))
            workload = Workload(
                preset="alltoall",
                num_tokens=0,
                hidden=point.hidden,
                num_experts=size,
                num_topk=1,
                dispatch_dtype="bf16",
                routing=f"matrix:{matrix}",
                prefix=_PREFIX,
            )
            shape = Shape(
                num_nodes=1,
                ranks_per_node=size,
                num_tokens=workload.num_tokens,
                hidden=workload.hidden,
                num_experts=workload.num_experts,
                num_topk=workload.num_topk,
                num_sms=constants.LIBRARY_SMS,
                dispatch_dtype="bf16",
                prefix=_PREFIX,
            )
            plan = Plan.of(workload.topk(size, size), shape)
        self.point = point
        self.sent = plan.copies
        self._world = World(
            shape,
            load_fabric(FABRIC),
            plan.num_tokens,
            int(plan.copies.sum(axis=0).max()),
            np.zeros(size, np.int64),
        )

    def run(self, tried: Constants) -> Outcome:
        """Run it with `tried` in place of the committed constants."""
        device = SimDevice(_with(tried), self._world)
        for rank in range(self.point.world_size):
            # What the dispatch before it leaves: where each peer's rows begin.
            begins = device.view(rank, "send_begins", np.int32)
            begins[1:] = np.cumsum(self.sent[rank])
            begins = device.view(rank, "recv_begins", np.int32)
            begins[1:] = np.cumsum(self.sent[:, rank])
        _, outcome = device.run(["combine"], "cached")
        return outcome

    def time_us(self, tried: Constants) -> float:
        """Return the time from the first rank's start to the last one's end."""
        outcome = self.run(tried)
        return float(outcome.end_ps.max() - outcome.start_ps.min()) / PS_PER_US

    def is_met(self, tried: Constants) -> bool:
        """Return whether the model is at least as fast as published."""
        return self.time_us(tried) <= self.point.time_us

    @property
    def num_chunks(self) -> int:
        """Chunks, at the least, that a stream sends one after another."""
        streams = constants.LIBRARY_SMS * NUM_PAIRS
        return -(
            -self.point.pair_bytes * self.point.world_size // (streams * constants.CHUNK_BYTES)
        )


def _with(tried: Constants) -> Protocol:
    """Return the baseline's plain exchange alone, with other constants."""

    def settings(shape: Shape) -> Mapping[str, int | str]:
        return {**DEDUP.settings(shape), "base_ns": tried.base_ns, "step_ns": tried.step_ns}

    launches = tuple(each for each in DEDUP.launches("combine", "cached") if each.name == PHASE)
    return replace(DEDUP, settings=settings, launches=lambda op, form: launches)


def fit(large: Exchange, small: Exchange) -> Constants:
    """Return the greatest constants with which the model is not slower than published.

    Raises:
        EpbenchError: without either constant the model is slower already.
    """
    # With more than this, a stream's pauses alone take longer than the published time.
    most_steps = int(1000 * large.point.time_us / large.num_chunks) // STEP_UNIT_NS + 1
    base_ns = _last_base(small, 0)
    while True:
        steps = _last(partial(_are_steps_met, large, base_ns), most_steps)
        if steps is None:
            raise _too_slow(large, "STEP_NS", Constants(base_ns, 0))
        found = Constants(base_ns, steps * STEP_UNIT_NS)
        base_ns = _last_base(small, found.step_ns)
        if base_ns == found.base_ns:
            return found


def _last_base(small: Exchange, step_ns: int) -> int:
    too_much = int(1000 * small.point.time_us) + 1
    base_ns = _last(lambda base: small.is_met(Constants(base, step_ns)), too_much)
    if base_ns is None:
        raise _too_slow(small, "BASE_NS", Constants(0, step_ns))
    return base_ns


def _are_steps_met(large: Exchange, base_ns: int, steps: int) -> bool:
    return large.is_met(Constants(base_ns, steps * STEP_UNIT_NS))


def is_fixed_point(large: Exchange, small: Exchange, tried: Constants) -> bool:
    """Return whether constants meet both rows, and a unit more of either misses one."""
    return (
        tried.step_ns % STEP_UNIT_NS == 0
        and small.is_met(tried)
        and not small.is_met(replace(tried, base_ns=tried.base_ns + 1))
        and large.is_met(tried)
        and not large.is_met(replace(tried, step_ns=tried.step_ns + STEP_UNIT_NS))
    )


def _last(is_met: Callable[[int], bool], too_much: int) -> int | None:
    """Return a number that meets a condition whose successor does not, None if 0 does not."""
    if not is_met(0):
        return None
    met = 0
    while too_much - met > 1:
        middle = (met + too_much) // 2
        if is_met(middle):
            met = middle
        else:
            too_much = middle
    return met


def _too_slow(exchange: Exchange, name: str, tried: Constants) -> EpbenchError:
    point = exchange.point
    value = point.value(exchange.time_us(tried))
    return EpbenchError(
        f"no {name} fits {point.metric!r}: with {name} 0 the model gives {value:.2f}, slower than "
        f"the {point.published:g} published; see what else binds it on {FABRIC}"
    )


def table(exchanges: tuple[Exchange, Exchange], tried: Constants) -> str:
    """Return the rows with what the model gives for them, and the constants."""
    lines = [f"{'row of data/calibration.csv':34}{'published':>10}{'model':>10}{'residual':>10}"]
    for exchange in exchanges:
        point = exchange.point
        value = point.value(exchange.time_us(tried))
        residual = 100 * (value / point.published - 1)
        lines.append(f"{point.metric:34}{point.published:10g}{value:10.3f}{residual:+9.3f}%")
    return "\n".join([*lines, f"BASE_NS = {tried.base_ns}", f"STEP_NS = {tried.step_ns}"])


@click.command()
@click.option("--check", is_flag=True, help="Fail where the committed constants are others.")
def main(check: bool) -> None:
    """Fit the NCCL model's two constants to its two rows: a fit, not a validation."""
    large, small = (Exchange(point) for point in read_points())
    try:
        fitted = fit(large, small)
    except EpbenchError as error:
        click.echo(f"bench.fitting.nccl: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(table((large, small), fitted))
    click.echo("Fitted: two constants on two rows, which therefore validate nothing.")
    if check and fitted != COMMITTED:
        click.echo(f"bench.fitting.nccl: kernels/nccl_like/constants.py has {COMMITTED}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
