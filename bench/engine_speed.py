"""`python -m bench.engine_speed`: how fast the simulator itself runs, on one core.

Fixed cases: preset deepseek-v3 on fabric h800, seed 0, FP8 dispatch and BF16 combine of which the
first 128 and the last 64 elements of a row really move. Each case runs in a process of its own,
pinned to one core, after a tiny exchange that compiles or loads its kernels. rows/s is rows copied
or read per wall second; a row is one (token, destination rank) copy.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Literal

import click

from comms.errors import EpbenchError, RuntimeFailure, UsageError

if TYPE_CHECKING:
    from bench.plan import Plan
    from bench.routing import Routing
    from bench.workload import Workload
    from kernels.devices.sim import SimDevice
    from kernels.shape import Shape

Op = Literal["dispatch", "combine"]
Program = Literal["engine", "simpy"]
OPS: tuple[Op, ...] = ("dispatch", "combine")
PRESET, FABRIC = "deepseek-v3", "h800"
#: Tokens of the exchange before the clock starts.
WARM_UP_TOKENS = 16
COLUMNS = ("case", "program", "op", "virtual_us", "events", "rows", "wall_s") + (
    "events/s",
    "rows/s",
    "peak_mb",
)


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """One world to time.

    Attributes:
        name: as the command line names it.
        num_nodes: nodes of the world.
        ranks_per_node: ranks on each node.
        variant: of kernel `direct`; pull reaches one node only.
        routing: spec string of the workload.
        num_tokens: tokens of each rank.
        num_sms: SMs of each rank.
    """

    name: str
    num_nodes: int
    ranks_per_node: int
    variant: Literal["pull", "push"]
    routing: str
    num_tokens: int = 4096
    num_sms: int = 16


CASES = {
    "ep8": SpeedCase("ep8", 1, 8, "pull", "uniform"),
    "ep64": SpeedCase("ep64", 8, 8, "push", "groups"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed op.

    Attributes:
        case: name of the case.
        program: who ran it.
        op: what was run.
        time_ps: virtual time of the last rank.
        num_events: events handled, None where the program does not count them.
        num_rows: rows copied or read.
        wall_s: seconds that the run took.
        peak_bytes: most memory that the process has had.
    """

    case: str
    program: Program
    op: Op
    time_ps: int
    num_events: int | None
    num_rows: int
    wall_s: float
    peak_bytes: int

    def cells(self) -> list[str]:
        """Return a cell for each of `COLUMNS`."""
        events = self.num_events
        return [
            self.case,
            self.program,
            self.op,
            f"{self.time_ps / 1e6:.1f}",
            "-" if events is None else str(events),
            str(self.num_rows),
            f"{self.wall_s:.3f}",
            "-" if events is None else f"{events / self.wall_s:.0f}",
            f"{self.num_rows / self.wall_s:.0f}",
            f"{self.peak_bytes / 1e6:.0f}",
        ]


@dataclass(frozen=True, slots=True)
class _Exchange:
    workload: Workload
    shape: Shape
    routing: Routing
    plan: Plan


def time_engine(case: SpeedCase) -> list[Sample]:
    """Time both ops on the engine; memory is this process's peak, so give each call its own."""
    _run_engine(replace(case, num_tokens=min(WARM_UP_TOKENS, case.num_tokens)))
    return _run_engine(case)


def time_simpy(case: SpeedCase) -> list[Sample]:
    """Time both ops of the same exchange as a SimPy program; memory as for `time_engine`."""
    from bench.simpy_direct import run_combine, run_dispatch
    from comms.fabric import load_fabric

    exchange = _exchange(case)
    fabric = load_fabric(FABRIC)
    num_rows = int(exchange.plan.copies.sum())
    samples = []
    for op, run in zip(OPS, (run_dispatch, run_combine), strict=True):
        times = run(exchange.shape, fabric, exchange.routing.topk_idx)
        program: Program = "simpy"
        measured = (times.time_ps, None, num_rows, times.wall_s, _peak_bytes())
        samples.append(Sample(case.name, program, op, *measured))
    return samples


def _run_engine(case: SpeedCase) -> list[Sample]:
    exchange = _exchange(case)
    device = _device(case, exchange)
    num_rows = int(exchange.plan.copies.sum())
    samples = []
    for op in OPS:
        begun = time.perf_counter()
        _, outcome = device.run([op], "fresh")
        wall_s = time.perf_counter() - begun
        time_ps = int(outcome.end_ps[-1].max())
        measured = (time_ps, outcome.num_events, num_rows, wall_s, _peak_bytes())
        samples.append(Sample(case.name, "engine", op, *measured))
    return samples


def _exchange(case: SpeedCase) -> _Exchange:
    from bench.plan import Plan
    from bench.workload import Workload
    from kernels.shape import Shape

    workload = Workload.from_preset(PRESET, case.num_tokens, case.routing)
    shape = Shape(
        num_nodes=case.num_nodes,
        ranks_per_node=case.ranks_per_node,
        num_tokens=workload.num_tokens,
        hidden=workload.hidden,
        num_experts=workload.num_experts,
        num_topk=workload.num_topk,
        num_sms=case.num_sms,
        dispatch_dtype=workload.dispatch_dtype,
        combine_dtype=workload.combine_dtype,
        prefix=workload.prefix,
    )
    routing = workload.topk(shape.world_size, shape.ranks_per_node)
    return _Exchange(workload, shape, routing, Plan.of(routing, shape))


def _device(case: SpeedCase, exchange: _Exchange) -> SimDevice:
    import numpy as np

    from comms.fabric import load_fabric
    from kernels import direct
    from kernels.devices.sim import SimDevice, World

    shape, workload = exchange.shape, exchange.workload
    num_recv = exchange.plan.copies.sum(axis=0)
    world = World(
        shape=shape,
        fabric=load_fabric(FABRIC),
        num_tokens=exchange.plan.num_tokens,
        capacity_rows=int(num_recv.max()),
        skew_ps=np.zeros(shape.world_size, np.int64),
    )
    device = SimDevice(direct.PULL if case.variant == "pull" else direct.PUSH, world)
    for rank in range(shape.world_size):
        num_tokens = int(exchange.plan.num_tokens[rank])
        data = {
            "x": workload.x(rank, num_tokens, shape.dispatch_row, 0),
            "y": workload.y(rank, int(num_recv[rank]), shape.combine_row, 0),
            "topk_idx": exchange.routing.topk_idx[rank],
            "topk_weights": exchange.routing.topk_weights[rank],
        }
        for name, rows in data.items():
            flat = rows.reshape(-1)
            device.view(rank, name, flat.dtype)[: len(flat)] = flat
    device.poison(("recv_x", "recv_topk_idx", "recv_topk_weights", "recv_counts", "out"), num_recv)
    return device


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pin_to_one_core() -> None:
    """Keep this process on the last of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _in_child(run: Callable[[SpeedCase], list[Sample]], case: SpeedCase) -> list[Sample]:
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=pin_to_one_core) as pool:
        try:
            return pool.submit(run, case).result()
        except BrokenProcessPool as error:
            raise RuntimeFailure(
                f"the process of case {case.name} died, perhaps for want of memory; "
                "use fewer --tokens"
            ) from error


def format_table(samples: Sequence[Sample]) -> str:
    """Return the samples as plain columns, a header first."""
    lines = [list(COLUMNS), *(sample.cells() for sample in samples)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def compare(engine: Sequence[Sample], simpy: Sequence[Sample]) -> list[str]:
    """Return one sentence for each op that both programs ran, rows alike."""
    lines = []
    for ours, theirs in zip(engine, simpy, strict=True):
        apart = abs(ours.time_ps - theirs.time_ps) / theirs.time_ps
        lines.append(
            f"{ours.op}: engine {ours.wall_s:.3f} s, SimPy {theirs.wall_s:.3f} s: "
            f"{theirs.wall_s / ours.wall_s:.1f} times the rows/s; virtual time "
            f"{ours.time_ps / 1e6:.1f} us and {theirs.time_ps / 1e6:.1f} us, {apart:.2%} apart"
        )
    return lines


@click.command()
@click.option("--case", "name", type=click.Choice([*CASES, "all"]), default="all")
@click.option("--simpy", is_flag=True, help="Run ep8 as a SimPy program, too.")
@click.option("--num-sms", type=click.IntRange(1), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(0), default=4096, show_default=True)
def main(name: str, simpy: bool, num_sms: int, tokens: int) -> None:
    """Time the simulator on fixed cases, on one core; rows/s is rows copied or read per second."""
    try:
        _report(name, simpy=simpy, num_sms=num_sms, num_tokens=tokens)
    except EpbenchError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _report(name: str, *, simpy: bool, num_sms: int, num_tokens: int) -> None:
    if simpy:
        from bench.simpy_direct import load_simpy

        load_simpy()
        if name == "ep64":
            raise UsageError("the SimPy program has one node only; use --case ep8 or all")
    samples: list[Sample] = []
    comparison: list[str] = []
    for case in CASES.values() if name == "all" else [CASES[name]]:
        sized = replace(case, num_sms=num_sms, num_tokens=num_tokens)
        engine = _in_child(time_engine, sized)
        samples += engine
        if simpy and case.num_nodes == 1:
            other = _in_child(time_simpy, sized)
            samples += other
            comparison = compare(engine, other)
    click.echo(format_table(samples))
    for line in comparison:
        click.echo(line)


if __name__ == "__main__":
    main()
