"""The flags of `epbench run` for device `cuda`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bench.options import COUNTS
from bench.timing import Timing
from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.cases import CaseSpec

CARD_OPTIONS = (
    click.Option(
        ["--ranks-per-card"],
        type=COUNTS,
        metavar="N,...",
        help="On cuda, a world of N ranks that all share one GPU and one process, without MPI. "
        "Rows are labelled one-card.",
    ),
    click.Option(
        ["--memory"],
        type=click.Choice(["ipc", "nccl"]),
        default=Timing().memory,
        metavar="ipc|nccl",
        help="On cuda, whose windows ranks map: CUDA IPC's or NCCL's. Default: ipc.",
    ),
    click.Option(
        ["--graph"],
        is_flag=True,
        help="On cuda, replay launches from a CUDA graph, as short kernels are in frameworks.",
    ),
    click.Option(
        ["--profile"],
        is_flag=True,
        help="On cuda, launch each kernel once, with ranges and source lines for nsys and ncu, and "
        "print how to call these.",
    ),
)
_CARD_FLAGS = ("memory", "graph", "profile")


def refuse_card_flags(context: click.Context, specs: Sequence[CaseSpec]) -> None:
    """Refuse flags of device `cuda` where nothing runs on it.

    Raises:
        UsageError: there is such a flag, or two that do not go together.
    """
    given = [
        f"--{name}"
        for name in _CARD_FLAGS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given and not any(spec.device == "cuda" for spec in specs):
        raise UsageError(f"{given[0]} is for device cuda: leave it out, or ask for --device cuda")
    if context.params["graph"] and context.params["profile"]:
        raise UsageError("--graph and --profile cannot be given together; give one")


def profiling(argv: Sequence[str], specs: Sequence[CaseSpec]) -> str:
    """Return how to run a command line under profilers."""
    command = " ".join(argv)
    lines = [
        "Profile it by:",
        f"  nsys profile --trace=cuda,nvtx --output=epbench {command}",
    ]
    if all(spec.num_processes == 1 for spec in specs):
        lines.append(
            "  ncu --target-processes=all --kernel-name=regex:epbench_ --set=full "
            f"--import-source=yes --export=epbench {command}"
        )
    else:
        lines.append(
            "ncu runs a kernel several times, while other ranks wait for it once: it needs "
            "--ranks-per-card."
        )
    return "\n".join(lines) + "\n"
