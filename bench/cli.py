"""The command line: `epbench run`, `tune`, `trace`, `validate`, `asm`, `show`, `list`, `doctor`.

Every ending is one sentence on stderr and a documented exit code. What takes long to import is
imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.asm.command import OPTIONS as ASM_OPTIONS
from bench.card_options import CARD_OPTIONS, profiling, refuse_card_flags
from bench.options import COUNTS, GRID_OPTIONS, OUTPUT_OPTIONS, TIMING_OPTIONS, TRACE_OPTIONS
from bench.resolve import resolve, timing_of
from bench.run_request import RunRequest
from bench.running import interruption, raise_for_status, run_specs, say, terminable
from bench.tuning.command import OPTIONS as TUNE_OPTIONS
from bench.validation.command import OPTIONS as VALIDATE_OPTIONS
from comms.errors import (
    EpbenchError,
    Interrupted,
    RuntimeFailure,
    UsageError,
)

if TYPE_CHECKING:
    from bench.pages.tables import Page
    from bench.records.store import RunStore


@dataclass(slots=True)
class _Settings:
    argv: list[str]
    traceback: bool = False


def _want_traceback(context: click.Context, _: click.Parameter, value: bool) -> None:
    settings = context.find_object(_Settings)
    if value and settings is not None:
        settings.traceback = True


_TRACEBACK = click.Option(
    ["--traceback"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_want_traceback,
    help="Show where an internal error comes from.",
)


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 100,
    },
    params=[_TRACEBACK],
)
def cli() -> None:
    """Benchmark dispatch and combine of expert-parallel MoE models.

    Exit codes: 0 ok, 1 internal error, 2 usage or launcher, 3 a kernel or library failed or disk
    full, 4 timeout or dead rank, 5 nothing ran, 7 wrong results, 130 interrupted.
    """


@cli.command(params=[*GRID_OPTIONS, *TIMING_OPTIONS, *CARD_OPTIONS, *OUTPUT_OPTIONS, _TRACEBACK])
@click.pass_context
def run(context: click.Context, /, **_: object) -> int:
    """Run kernels and print their times beside their bounds.

    Runs every combination of the flags, or a suite with the given flags in place of its own axes.
    Results are kept under --results and rewritten after each case. Lists are comma separated.

    Devices cpu and cuda have a process per rank: started alone, epbench launches mpirun once for
    all cases; under mpirun, mpiexec or srun it uses the ranks it finds. Ranks of cuda that share a
    GPU (--ranks-per-card) have one process, and need no MPI.
    """
    from bench.expand import expand
    from comms.mpi.launched import launched

    flags, started = context.params, launched()
    grids = resolve(context, started.size if started else None)
    specs, tuned, told = expand(grids), None, None
    if flags["tuned"]:
        from bench.tuning.apply import tuned_by, with_tuned
        from bench.tuning.tuned_file import read_tuned

        if flags["knob"]:
            raise UsageError("--tuned and --knob cannot be given together; give one")
        tuned = read_tuned(flags["tuned"])
        told = tuned_by(specs, tuned, str(flags["tuned"]))
        specs = with_tuned(specs, tuned, str(flags["tuned"]))
    refuse_card_flags(context, specs)
    timing = timing_of(context)
    on_ranks = any(spec.device != "sim" for spec in specs)
    if started is not None and started.size > 1 and not on_ranks:
        raise UsageError(
            f"device sim runs a whole world in one process, {started.launcher} started "
            f"{started.size}: start epbench alone, or ask for --device cpu or cuda"
        )
    settings = context.find_object(_Settings)
    request = RunRequest(
        suite=flags["suite"],
        grids=grids,
        specs=specs,
        timing=timing if on_ranks else None,
        argv=["epbench", *(settings.argv if settings else [])],
        results=flags["results"],
        json=flags["json"],
        tuned=told,
    )
    if started is not None and on_ranks:
        from bench.ranks.launched_run import run_as_rank

        return run_as_rank(request, timing, finish_run)
    from bench.progress import open_progress
    from bench.ranks.job import Dispatcher
    from bench.ranks.request import Request

    store = request.open_store()
    runner = Dispatcher(
        specs,
        lambda parent, start: Request(grids, timing, parent, start, tuned=tuned),
        store.set_ranks,
    )
    early = True
    try:
        with open_progress(len(specs)) as progress:
            run_specs(specs, runner, store=store, progress=progress)
        early = False
    finally:
        runner.close(early=early)
    return finish_run(request, store)


def finish_run(request: RunRequest, store: RunStore) -> int:
    """Print the page of a run that has ended; return 0.

    Raises:
        EpbenchError: a case did not end well.
    """
    from bench.pages.table import build_page

    _print_page(
        build_page(store.run), written=[path for path in (store.path, request.json) if path]
    )
    if request.timing and request.timing.profile:
        with _stdout():
            sys.stdout.write(profiling(request.argv, request.specs))
    raise_for_status(store.run.cases)
    return 0


@cli.command(params=[*TUNE_OPTIONS, _TRACEBACK])
@click.pass_context
def tune(context: click.Context, /, **_: object) -> int:
    """Search the knobs of kernels, and measure what was found on other seeds.

    Every kernel, world, number of tokens and of SMs that the flags name is tuned by itself: from
    its default, the choices of one knob after another are tried until none is faster. Settings
    whose results are wrong are dropped. The file is for `epbench run --tuned`; Ctrl-C keeps what
    was found so far.
    """
    from bench.tuning.command import tune as run_tune

    settings = context.find_object(_Settings)
    argv = ["epbench", *(settings.argv if settings else [])]
    return run_tune(
        context, argv, lambda page, path: _print_page(page, written=[path] if path else [])
    )


@cli.command(params=[*GRID_OPTIONS, *TRACE_OPTIONS, _TRACEBACK])
@click.pass_context
def trace(context: click.Context, /, **_: object) -> None:
    """Record one case on the simulator: a timeline, and what bounded it.

    Flags take one value each. The operation runs as in `epbench run`, checked, and the file opens
    in ui.perfetto.dev: a process for each rank and SM, a thread for each warp.
    """
    from bench.timeline.command import trace_command

    def say(text: str) -> None:
        with _stdout():
            sys.stdout.write(text)

    trace_command(context, say)


@cli.command(params=[*VALIDATE_OPTIONS, _TRACEBACK])
@click.pass_context
def validate(context: click.Context, /, **_: object) -> int:
    """Predict published configurations of DeepEP's first version.

    Without flags the published rows that constants are fitted to, with the residuals of the
    simulator and of a closed form (some minutes). With flags any configuration; lists give every
    combination. Ctrl-C shows and keeps what was predicted so far.
    """
    from bench.validation.command import validate as run_validate

    settings = context.find_object(_Settings)
    argv = ["epbench", *(settings.argv if settings else [])]
    return run_validate(
        context, argv, lambda page, path: _print_page(page, written=[path] if path else [])
    )


@cli.command(params=[*ASM_OPTIONS, _TRACEBACK])
@click.pass_context
def asm(context: click.Context, /, **_: object) -> None:
    """Compile kernels for GPUs and tell what the machine code says; no GPU is needed.

    KERNEL is a name as `epbench run` takes it: direct, direct/push, path/to/file.py:name. Told are
    registers and memory, what an SM holds, how wide accesses are, what orders them, and what the
    loop that moves rows costs and has under way.
    """
    from bench.asm.command import asm as run_asm

    def say(text: str) -> None:
        with _stdout():
            sys.stdout.write(text)

    run_asm(context, say, lambda page: _print_page(page, written=[]))


@cli.command(params=[_TRACEBACK])
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--markdown", is_flag=True, help="As Markdown tables.")
@click.option(
    "--overview",
    type=COUNTS,
    metavar="N,...",
    help="Instead, one table of all files: each kernel in each world at its best SMs and at these.",
)
def show(files: tuple[Path, ...], markdown: bool, overview: tuple[int, ...] | None) -> None:
    """Print the pages of stored runs."""
    from bench.pages import render
    from bench.pages.overview import build_overview
    from bench.pages.table import build_page
    from bench.records.store import read_run

    runs = [read_run(file) for file in files]
    pages: list[Page] = [build_page(run) for run in runs]
    if overview is not None:
        pages = [build_overview(runs, overview)]
    for page in pages:
        if markdown:
            with _stdout():
                sys.stdout.write(render.markdown(page))
        else:
            _print_page(page, written=[])


@cli.command("list", params=[_TRACEBACK])
def list_() -> None:
    """List kernels, variants and every name that a flag accepts."""
    from bench.options import catalogue

    with _stdout():
        sys.stdout.write(catalogue())


@cli.command(params=[_TRACEBACK])
@click.option("--ranks", type=click.IntRange(min=1), metavar="N", help="Start N ranks, show them.")
@click.option(
    "--timeout",
    "-T",
    type=click.FloatRange(min=0.1),
    default=30.0,
    metavar="SECONDS",
    help="Longest that ranks may take to meet. Default: 30.",
)
@click.option(
    "--device", type=click.Choice(["cuda"]), help="Look for GPUs and what they need, too."
)
def doctor(ranks: int | None, timeout: float, device: str | None) -> int:
    """Tell what works here and what to do about the rest.

    A line for each finding begins with ok, note or bad. Under mpirun, mpiexec or srun it shows the
    ranks that were started.
    """
    from bench.doctor import examine

    def say(text: str) -> None:
        with _stdout():
            sys.stdout.write(text)

    return examine(say, ranks, timeout, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: arguments without the program's name, those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    settings = _Settings(args)
    with terminable():
        return _main(args, settings)


def _main(args: list[str], settings: _Settings) -> int:
    try:
        result = cli.main(args, "epbench", standalone_mode=False, obj=settings)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _refuse(error.format_message(), error.exit_code)
    except EpbenchError as error:
        _trace(settings)
        return _refuse(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as interrupt:
        return _refuse(
            f"{interruption(interrupt)} before there was a result", Interrupted.exit_code
        )
    except Exception as error:  # noqa: BLE001
        _trace(settings)
        return _refuse(f"internal error: {type(error).__name__}: {error}", 1)


def _trace(settings: _Settings) -> None:
    if settings.traceback:
        traceback.print_exc()


def _refuse(sentence: str, exit_code: int) -> int:
    """Say why there is no result; of several ranks the first speaks."""
    from comms.mpi.launched import launched, let_first_speak

    let_first_speak()
    started = launched()
    if started is None or started.rank == 0:
        say(sentence)
    return exit_code


def _print_page(page: Page, *, written: Sequence[Path]) -> None:
    from bench.pages import render
    from comms.mpi.launched import launched

    with _stdout():
        # A launcher gives its ranks a terminal whose lines go anywhere.
        is_terminal = sys.stdout.isatty() and launched() is None
        if is_terminal:
            from rich.console import Console

            render.print_rich(page, Console())
        else:
            sys.stdout.write(render.plain(page))
        for path in written:
            sys.stdout.write(f"{'' if is_terminal else '# '}Written to {path}\n")


@contextmanager
def _stdout() -> Iterator[None]:
    """Let a closed pipe end the output quietly, and a full disk with one sentence."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise RuntimeFailure(f"cannot write to standard output: {error.strerror}") from error
