"""`epbench validate`: its flags, and what it does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.options import COUNTS, Listed
from bench.running import interruption
from comms.errors import EpbenchError, Interrupted, UsageError, error_of

if TYPE_CHECKING:
    from bench.pages.tables import Page
    from bench.progress import Progress
    from bench.traffic.bounds import HalfOp
    from bench.validation.calibration import Point
    from bench.validation.prediction import Prediction, Predictions
    from bench.validation.question import Question

_GPUS = ("h800", "h100")
_KERNELS = ("ring", "ring_two_hop", "low_latency")

OPTIONS = (
    click.Option(
        ["--gpu"],
        type=Listed(click.Choice(_GPUS)),
        metavar="h800|h100",
        help="GPU and links. Default: h800.",
    ),
    click.Option(
        ["--kernel"],
        type=Listed(click.Choice(_KERNELS)),
        metavar="|".join(_KERNELS),
        help="Kernel of DeepEP's first version. Default: ring on one node, else ring_two_hop.",
    ),
    click.Option(["--nodes"], type=COUNTS, metavar="N,...", help="Nodes of 8 GPUs. Default: 1."),
    click.Option(
        ["--tokens", "--num-tokens", "tokens"],
        type=Listed(click.IntRange(min=0)),
        metavar="N,...",
        help="Tokens of a rank. Default: 4096, of low_latency 128.",
    ),
    click.Option(["--hidden"], type=COUNTS, metavar="N,...", help="Default: 7168."),
    click.Option(
        ["--topk", "--num-topk", "--top-k", "topk"],
        type=COUNTS,
        metavar="N,...",
        help="Experts of a token. Default: 8.",
    ),
    click.Option(
        ["--experts", "--num-experts", "experts"],
        type=COUNTS,
        metavar="N,...",
        help="Experts of the layer. Default: 256.",
    ),
    click.Option(
        ["--groups"],
        metavar='"M of N"|M',
        help="A token uses M of N groups of experts; M alone is of as many groups as nodes. "
        "Default: no groups.",
    ),
    click.Option(
        ["--num-sms", "num_sms"],
        type=COUNTS,
        metavar="N,...",
        help="SMs of the kernel. Default: V1's 24; of low_latency a block for every expert or two.",
    ),
    click.Option(
        ["--op"],
        type=click.Choice(["dispatch", "combine", "both"]),
        default="both",
        metavar="dispatch|combine|both",
        help="Default: both.",
    ),
    click.Option(
        ["--form"],
        type=click.Choice(["cached", "fresh"]),
        metavar="cached|fresh",
        help="Counts reused or exchanged. Default: what V1's tests time.",
    ),
    click.Option(
        ["--seed"], type=click.IntRange(min=0), metavar="N", help="Of routing and data. Default: 0."
    ),
    click.Option(
        ["--json"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write the predictions to FILE.",
    ),
)
#: A configuration, and for each operation what was published about it, if anything.
Task = tuple["Question", dict["HalfOp", "Point | None"]]
#: Flags that ask for a configuration; without any of them the published rows are run.
_ASKING = (
    *("gpu", "kernel", "nodes", "tokens", "hidden", "topk", "experts", "groups", "num_sms"),
    *("form", "seed"),
)


def validate(
    context: click.Context, argv: list[str], show: Callable[[Page, Path | None], None]
) -> int:
    """Predict what the flags ask for, or the published rows; return 0.

    Args:
        context: the parsed command.
        argv: the command line, for the file.
        show: prints a page, and where the file is, if there is one.

    Raises:
        EpbenchError: flags that contradict each other, or a run that did not end well; what was
            predicted is then shown all the same.
    """
    from bench.validation.page import sheet
    from bench.validation.prediction import Predictions, probe

    flags = context.params
    path: Path | None = flags["json"]
    if path is not None:
        probe(path)
    ops: list[HalfOp] = ["dispatch", "combine"] if flags["op"] == "both" else [flags["op"]]
    is_asked = any(flags[name] is not None for name in _ASKING)
    found = Predictions(command=" ".join(argv), complete=False, cases=[])
    tasks = _asked(flags, ops) if is_asked else _published(ops, found.skipped)
    try:
        _predict_all(tasks, found, path)
    except EpbenchError:
        if found.cases:
            show(sheet(found), None)
        raise
    show(sheet(found), path)
    return 0


def _predict_all(tasks: Sequence[Task], found: Predictions, path: Path | None) -> None:
    """Predict in order and keep the file, if there is one, up to date.

    Raises:
        Interrupted: the user pressed Ctrl-C; the file has what was found so far.
        EpbenchError: a prediction failed; likewise.
    """
    from bench.progress import open_progress
    from bench.validation.prediction import write_predictions

    def keep(*, last: bool) -> None:
        if path is not None and found.cases:
            write_predictions(path, found, last=last)

    def so_far() -> str:
        if not found.cases:
            return "; nothing was predicted so far"
        return "" if path is None else f"; predicted so far: {path}"

    num_done = 0
    try:
        with open_progress(len(tasks)) as progress:
            for question, points in tasks:
                found.cases += _predict(question, points, progress)
                num_done += 1
                keep(last=False)
        found.complete = True
    except KeyboardInterrupt as interrupt:
        raise Interrupted(
            f"{interruption(interrupt)} after {num_done} of {len(tasks)} configurations{so_far()}"
        ) from None
    except EpbenchError as error:
        raise error_of(error.exit_code, f"{error}{so_far()}") from error
    finally:
        keep(last=True)


def _asked(flags: Mapping[str, Any], ops: Sequence[HalfOp]) -> list[Task]:
    """Return every combination of the flags.

    Raises:
        UsageError: one of them cannot run.
    """
    from bench.validation.calibration import find_point
    from bench.validation.question import Question, parse_groups

    axes = {
        "nodes": flags["nodes"] or (1,),
        "kernel": flags["kernel"] or (None,),
        "gpu": flags["gpu"] or ("h800",),
        "num_tokens": flags["tokens"] or (None,),
        "hidden": flags["hidden"] or (7168,),
        "num_topk": flags["topk"] or (8,),
        "num_experts": flags["experts"] or (256,),
        "num_sms": flags["num_sms"] or (None,),
    }
    tasks: list[Task] = []
    for values in product(*axes.values()):
        sizes = dict(zip(axes, values, strict=True))
        nodes, groups = sizes["nodes"], flags["groups"]
        if sizes["kernel"] is None:
            sizes["kernel"] = "ring" if nodes == 1 else "ring_two_hop"
        question = Question(
            **sizes,
            groups=None if groups is None else parse_groups(groups, nodes),
            form=flags["form"],
            seed=flags["seed"] or 0,
        )
        question.check(ops)
        tasks.append((question, {op: find_point(question, op) for op in ops}))
    return tasks


def _published(ops: Sequence[HalfOp], skipped: list[str]) -> list[Task]:
    """Return the questions of the published rows; those that cannot run go to `skipped`."""
    from bench.validation.calibration import read_points

    tasks: dict[Question, dict[HalfOp, Point | None]] = {}
    for point in read_points():
        if point.op in ops:
            tasks.setdefault(point.question, {})[point.op] = point
    runnable = []
    for question, points in tasks.items():
        try:
            question.check(list(points))
        except UsageError as error:
            skipped.append(f"{question.kernel} on {question.nodes} nodes: {error}")
        else:
            runnable.append((question, points))
    return runnable


def _predict(
    question: Question, points: dict[HalfOp, Point | None], progress: Progress
) -> list[Prediction]:
    from bench.validation.prediction import predict
    from bench.validation.simulated import simulate

    spec = question.spec()
    progress.begin(spec)
    answers = simulate(question, list(points), on_progress=progress.update)
    cases = [predict(question, op, answer, points[op]) for op, answer in answers.items()]
    progress.end(spec, cases)
    return cases
