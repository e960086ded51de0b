"""`epbench trace`: one case from the flags to its file and its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bench.cases import CaseSpec
from bench.expand import expand
from bench.progress import open_progress
from bench.resolve import resolve
from bench.timeline.events import write_trace
from bench.timeline.page import summary_page
from bench.timeline.summary import summarize
from bench.timeline.traced import ranks_to_record, trace_case
from comms.errors import UsageError, WrongResults
from comms.sim.timeline import Recorder


def trace_command(context: click.Context, say: Callable[[str], None]) -> None:
    """Record the case that a command line names, write its trace and say what bounded it.

    Args:
        context: the parsed command.
        say: writes to standard output.

    Raises:
        EpbenchError: the flags name no case or several, or the run did not end well; what it
            recorded is then written and said all the same.
    """
    flags = context.params
    if flags["device"] != "sim":
        raise UsageError(
            f"trace records virtual time, which device sim has alone: leave out --device "
            f"{flags['device']}"
        )
    spec = _only(expand(resolve(context, None)))
    path: Path = flags["out"]
    if not path.parent.is_dir():
        raise UsageError(f"cannot write the trace to {path}: no folder {path.parent}")
    recorder = Recorder(flags["max_records"], ranks_to_record(spec, flags["trace_ranks"]))
    with open_progress(1) as progress:
        progress.begin(spec)
        traced = trace_case(spec, flags["op"], recorder, progress.update)
        progress.update("writing", 1.0)
        write_trace(path, traced.timeline)
    title = f"{spec.label()}: {flags['op']}"
    say(summary_page(title, traced, summarize(traced.timeline)))
    say(f"#\n# Written to {path}: open it in https://ui.perfetto.dev\n")
    if traced.error is not None:
        raise traced.error
    if traced.seen is not None and traced.seen.check.num_wrong:
        raise WrongResults(f"{flags['op']} is incorrect: {traced.seen.check.first}")


def _only(specs: Sequence[CaseSpec]) -> CaseSpec:
    """Return the one spec.

    Raises:
        UsageError: there are several.
    """
    if len(specs) == 1:
        return specs[0]
    axes = [spec.axes() for spec in specs]
    several = {
        name: values
        for name in axes[0]
        if len(values := list(dict.fromkeys(str(one[name]) for one in axes))) > 1
    }
    named = "; ".join(f"{name} {', '.join(values)}" for name, values in several.items())
    raise UsageError(
        f"trace takes one case, these flags name {len(specs)}: {named}; give one of each"
    )
