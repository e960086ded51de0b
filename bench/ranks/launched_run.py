"""`epbench run` under a launcher: every rank runs it, the first one keeps and prints results."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench.progress import Progress, open_progress
from bench.ranks.rank import run_rank
from bench.ranks.supervisor import Supervisor
from bench.running import say
from comms.errors import EpbenchError

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.records.record import Case, Rank
    from bench.records.store import RunStore
    from bench.run_request import RunRequest
    from bench.timing import Timing

#: How long an ending rank waits for a write that is under way.
_WRITE_S = 2.0


def run_as_rank(
    request: RunRequest, timing: Timing, finish: Callable[[RunRequest, RunStore], int]
) -> int:
    """Run as one of the ranks that a launcher started, and return the exit code of all.

    Args:
        request: the run.
        timing: how real clocks are read.
        finish: prints what the first rank has kept.
    """
    supervisor = Supervisor(timeout_s=timing.timeout_s, tell=_tell)

    def work() -> int:
        def open_sink(ranks: list[Rank], library: str) -> _StoreSink:
            sink = _StoreSink(request, ranks, library)
            supervisor.save = sink.save
            return sink

        def close(sink: _StoreSink) -> int:
            sink.close()
            try:
                return finish(request, sink.store)
            except EpbenchError as error:
                _tell(error.exit_code, str(error))
                return error.exit_code

        return run_rank(supervisor, request.specs, timing, open_sink, close)

    return supervisor.run(work)


class _StoreSink:
    """Keeps cases in the files of the run and shows progress."""

    def __init__(self, request: RunRequest, ranks: list[Rank], library: str) -> None:
        self.store = request.open_store()
        self.store.set_ranks(ranks, library)
        self._num_specs = len(request.specs)
        self._num_done = 0
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._progress: Progress = self._stack.enter_context(open_progress(self._num_specs))

    def begin(self, spec: CaseSpec) -> None:
        """Start a spec."""
        self._progress.begin(spec)

    def update(self, stage: str, fraction: float) -> None:
        """Report that `fraction` (0 to 1) of `stage` is done."""
        self._progress.update(stage, fraction)

    def end(self, spec: CaseSpec, cases: list[Case]) -> None:
        """Keep the cases of a spec."""
        with self._lock:
            self.store.add(cases)
        self._num_done += 1
        self._progress.end(spec, cases)

    def close(self) -> None:
        """Write the complete run."""
        self._stack.close()
        with self._lock:
            self.store.finish(complete=True)

    def save(self) -> str:
        """Write the run as it is, on the way out; return words about it."""
        if self.store.run.complete:
            return ""
        if self._lock.acquire(timeout=_WRITE_S):
            try:
                self.store.finish(complete=False)
            except EpbenchError as error:
                return str(error)
        return f"{self._num_done} of {self._num_specs} specs are kept: {self.store.path}"


def _tell(exit_code: int, sentence: str) -> None:
    say(sentence)
