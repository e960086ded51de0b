"""Progress on stderr: a bar on a terminal, one line per spec elsewhere; stdout is never touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from bench.cases import CaseSpec


class Ended(Protocol):
    """What is shown of an operation that has ended."""

    @property
    def op(self) -> str:
        """The operation."""

    @property
    def status(self) -> str:
        """`passed`, or how it went otherwise."""

    @property
    def reason(self) -> str | None:
        """Why it did not pass."""

    @property
    def time_us(self) -> float | None:
        """Its time."""


class Progress(Protocol):
    """What the runner tells about the spec that it is at."""

    def begin(self, spec: CaseSpec) -> None:
        """Start a spec."""

    def update(self, stage: str, fraction: float) -> None:
        """Report that `fraction` (0 to 1) of `stage` is done."""

    def end(self, spec: CaseSpec, cases: Sequence[Ended]) -> None:
        """Finish a spec with its cases."""


class LineProgress:
    """One line per finished spec."""

    def __init__(self, num_specs: int) -> None:
        self._num_specs = num_specs
        self._num_done = 0

    def begin(self, spec: CaseSpec) -> None:
        """Start a spec."""

    def update(self, stage: str, fraction: float) -> None:
        """Report a stage, which a plain log does not show."""

    def end(self, spec: CaseSpec, cases: Sequence[Ended]) -> None:
        """Print the line of a spec."""
        self._num_done += 1
        line = f"[{self._num_done}/{self._num_specs}] {spec.label()}: {_outcome(cases)}"
        print(line, file=sys.stderr, flush=True)


class _BarProgress:
    """A bar over all specs, with the stage of the one that runs."""

    def __init__(self, num_specs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self.bar.add_task("", total=num_specs)
        self._num_done = 0
        self._label = ""

    def begin(self, spec: CaseSpec) -> None:
        self._label = spec.label()
        self.bar.update(self._task, description=self._label)

    def update(self, stage: str, fraction: float) -> None:
        self.bar.update(self._task, description=f"{self._label}: {stage} {fraction:.0%}")

    def end(self, spec: CaseSpec, cases: Sequence[Ended]) -> None:
        self._num_done += 1
        self.bar.update(self._task, completed=self._num_done)


@contextmanager
def open_progress(num_specs: int) -> Iterator[Progress]:
    """Show progress over `num_specs` specs while the context lasts."""
    if not sys.stderr.isatty():
        yield LineProgress(num_specs)
        return
    bar = _BarProgress(num_specs)
    with bar.bar:
        yield bar


def _outcome(cases: Sequence[Ended]) -> str:
    bad = [case for case in cases if case.status != "passed"]
    if bad:
        return f"{bad[0].status} ({bad[0].reason})"
    return ", ".join(f"{case.op} {case.time_us:.1f} us" for case in cases)
