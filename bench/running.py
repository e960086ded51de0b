"""Running specs in order: what is kept meanwhile, and how a run ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from bench.labels import label_of
from comms.errors import (
    EpbenchError,
    Interrupted,
    NothingRan,
    RuntimeFailure,
    TimeoutFailure,
    WrongResults,
    error_of,
)

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.progress import Progress
    from bench.records.record import Case
    from bench.records.store import RunStore

RunSpec = Callable[["CaseSpec", Callable[[str, float], None]], "list[Case]"]


def run_specs(
    specs: Sequence[CaseSpec], run_spec: RunSpec, *, store: RunStore, progress: Progress
) -> None:
    """Run the specs in order, keeping the results after each.

    Args:
        specs: what to run.
        run_spec: runs one spec and returns its cases; calls its second argument with
            (stage, fraction).
        store: where the cases go.
        progress: what the user sees meanwhile.

    Raises:
        Interrupted: the user pressed Ctrl-C; the results so far are kept.
        EpbenchError: a spec cannot be run; the results so far are kept.
    """
    num_done = 0
    try:
        for spec in specs:
            progress.begin(spec)
            try:
                cases = run_spec(spec, progress.update)
            except EpbenchError as error:
                store.finish(complete=False)
                raise error_of(error.exit_code, f"{error}; results so far: {store.path}") from error
            store.add(cases)
            num_done += 1
            progress.end(spec, cases)
        store.finish(complete=True)
    except KeyboardInterrupt as interrupt:
        store.finish(complete=False)
        raise Interrupted(
            f"{interruption(interrupt)} after {num_done} of {len(specs)} specs; "
            f"results so far: {store.path}"
        ) from None


def say(sentence: str) -> None:
    """Print the one sentence that a run ends with."""
    print(f"epbench: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def raise_for_status(cases: Sequence[Case]) -> None:
    """Raise the error of the worst status among the cases, if there is one.

    Raises:
        WrongResults: a case is incorrect.
        TimeoutFailure: a case timed out.
        RuntimeFailure: a case failed.
        NothingRan: there are only skipped cases.
    """
    failures = {"incorrect": WrongResults, "timeout": TimeoutFailure, "error": RuntimeFailure}
    for status, failure in failures.items():
        bad = [case for case in cases if case.status == status]
        if bad:
            one = bad[0]
            first = f"{label_of(one)} {one.op}, EP{one.world_size}, {one.num_sms} SMs"
            count = "1 case" if len(bad) == 1 else f"{len(bad)} cases"
            raise failure(f"{count} {status}, first {first}: {one.reason}")
    if all(case.status == "skipped" for case in cases):
        why = f", first because {cases[0].reason}" if cases else ""
        raise NothingRan(f"nothing ran: every case was skipped{why}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise on SIGTERM while the context lasts."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruption(interrupt: BaseException) -> str:
    """Return what interrupted a run, in words."""
    # Click raises its own error from what ended a command.
    is_terminated = isinstance(interrupt, Terminated) or isinstance(interrupt.__cause__, Terminated)
    by = " by SIGTERM" if is_terminated else ""
    return f"interrupted{by}"
