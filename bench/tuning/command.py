"""`epbench tune`: its flags, and what it does with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from bench.options import GRID_OPTIONS, OUTPUT_OPTIONS, SEEDS, TIMING_OPTIONS
from bench.records.record import Op
from bench.resolve import resolve, timing_of
from comms.errors import EpbenchError, NothingRan, UsageError

if TYPE_CHECKING:
    from bench.pages.tables import Page
    from bench.tuning.tuned_file import Tuned

_DROPPED = ("seed", "knob", "tuned", "json", "results")
OPTIONS = (
    *(
        option
        for option in (*GRID_OPTIONS, *TIMING_OPTIONS, *OUTPUT_OPTIONS)
        if option.name not in _DROPPED
    ),
    click.Option(
        ["--op"],
        type=click.Choice(get_args(Op)),
        default="pair",
        metavar="dispatch|combine|pair",
        help="Whose time counts. Default: pair.",
    ),
    click.Option(
        ["--seeds"],
        type=SEEDS,
        default=(0, 1),
        metavar="N,...",
        help="Seeds of routing and data that the search sees. Default: 0,1.",
    ),
    click.Option(
        ["--check-seeds"],
        type=SEEDS,
        default=(7, 8),
        metavar="N,...",
        help="Seeds on which the result is measured again. Default: 7,8.",
    ),
    click.Option(
        ["--budget"],
        type=click.IntRange(min=1),
        default=200,
        metavar="N",
        help="Most runs of the search of a kernel; those on the check seeds come on top. "
        "Default: 200.",
    ),
    click.Option(["--exhaustive"], is_flag=True, help="Try all combinations of all choices."),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File of the knobs found, for `epbench run --tuned`. Default: a new one under "
        "results/tuned.",
    ),
)


def tune(context: click.Context, argv: list[str], show: Callable[[Page, Path | None], None]) -> int:
    """Tune what the flags ask for; return 0.

    Args:
        context: the parsed command.
        argv: the command line, for the file.
        show: prints a page, and where the file is, if there is one.

    Raises:
        EpbenchError: it did not end well.
    """
    from bench.expand import expand
    from bench.tuning.page import tuned_page
    from bench.tuning.runs import runner
    from bench.tuning.tuned_file import Tuned
    from bench.tuning.tuner import Asked, Tuner
    from comms.mpi.launched import launched

    started = launched()
    if started is not None and started.size > 1:
        raise UsageError(
            f"epbench tune starts ranks itself, a new job for each step of a search, and "
            f"{started.launcher} started {started.size}: start it alone"
        )
    flags = context.params
    asked = Asked(
        op=flags["op"],
        seeds=flags["seeds"],
        check_seeds=flags["check_seeds"],
        budget=flags["budget"],
        exhaustive=flags["exhaustive"],
    )
    specs = expand(resolve(context, None))
    tuned = Tuned(
        start_time=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=argv,
        op=asked.op,
        seeds=list(asked.seeds),
        check_seeds=list(asked.check_seeds),
    )
    path: Path = flags["out"] or _new_path(tuned)
    tuner = Tuner(asked, runner(timing_of(context), lambda *_: None), tuned, path, _tell)
    try:
        tuner.tune(specs)
    except EpbenchError:
        if tuned.entries:
            show(tuned_page(tuned), path)
        raise
    show(tuned_page(tuned), path if tuned.entries else None)
    if not tuned.entries:
        raise NothingRan(f"nothing was tuned: {tuned.skipped[0].reason}")
    return 0


def _new_path(tuned: Tuned) -> Path:
    started = datetime.fromisoformat(tuned.start_time)
    sha = (tuned.tool.git_sha or "nogit")[:8]
    base = Path("results") / "tuned" / f"{started:%Y%m%dT%H%M%SZ}_{sha}"
    number, path = 1, base.with_name(f"{base.name}.json")
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}_{number}.json")
    return path


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
