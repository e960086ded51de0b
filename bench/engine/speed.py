"""`python -m bench.engine.speed`: how fast the simulator itself runs, on one core.

Fixed cases: preset deepseek-v3 on fabric h800, seed 0, FP8 dispatch and BF16 combine of which the
first 128 and the last 64 elements of a row really move. Each case runs in a process of its own,
pinned to one core, after a tiny exchange that compiles or loads its kernels. rows/s is rows copied
or read per wall second; a row is one (token, destination rank) copy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

import click

from bench.engine.cases import CASES, Sample, SpeedCase, time_engine, time_simpy
from bench.engine.simpy_world import load_simpy
from comms.errors import EpbenchError, RuntimeFailure, UsageError

COLUMNS = (
    *("case", "program", "op", "virtual_us", "events", "rows", "wall_s"),
    *("cpu_s", "events/s", "rows/s", "peak_mb"),
)
#: Leading columns that are text.
_NUM_TEXT_COLUMNS = 3


def format_table(samples: Sequence[Sample]) -> str:
    """Return the samples as plain columns, a header first."""
    lines = [list(COLUMNS), *map(_cells, samples)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = [
            cell.ljust(width) if index < _NUM_TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(cells)
        ]
        rows.append("  ".join(padded).rstrip())
    return "\n".join(rows)


def _cells(sample: Sample) -> list[str]:
    events = sample.num_events
    return [
        sample.case,
        sample.program,
        sample.op,
        f"{sample.time_ps / 1e6:.1f}",
        "-" if events is None else str(events),
        str(sample.num_rows),
        f"{sample.wall_s:.3f}",
        f"{sample.cpu_s:.3f}",
        "-" if events is None else f"{events / sample.wall_s:.0f}",
        f"{sample.num_rows / sample.wall_s:.0f}",
        f"{sample.peak_bytes / 1e6:.0f}",
    ]


def compare(engine: Sequence[Sample], simpy: Sequence[Sample]) -> list[str]:
    """Return one sentence for each op that both programs ran on the same rows, and one for all."""
    lines = []
    for ours, theirs in zip(engine, simpy, strict=True):
        apart = abs(ours.time_ps - theirs.time_ps) / theirs.time_ps
        lines.append(
            f"{ours.op}: engine {ours.wall_s:.3f} s, SimPy {theirs.wall_s:.3f} s: "
            f"{theirs.wall_s / ours.wall_s:.1f} times the rows/s; virtual time "
            f"{ours.time_ps / 1e6:.1f} us and {theirs.time_ps / 1e6:.1f} us, {apart:.2%} apart"
        )
    faster = sum(one.wall_s for one in simpy) / sum(one.wall_s for one in engine)
    lines.append(f"both: {faster:.1f} times the rows/s")
    return lines


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


@click.command()
@click.option("--case", "name", type=click.Choice([*CASES, "all"]), default="all")
@click.option("--simpy", is_flag=True, help="Run ep8 as a SimPy program, too.")
@click.option("--num-sms", type=click.IntRange(1), default=16, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=4096, show_default=True)
def main(name: str, simpy: bool, num_sms: int, tokens: int) -> None:
    """Time the simulator on fixed cases, on one core; rows/s is rows copied or read per second."""
    try:
        _report(name, simpy=simpy, num_sms=num_sms, num_tokens=tokens)
    except EpbenchError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _report(name: str, *, simpy: bool, num_sms: int, num_tokens: int) -> None:
    if simpy:
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
