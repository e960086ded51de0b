"""The job that a lone process starts: one launch of ranks for all specs that need them.

The first rank appends a line to `news.jsonl` for everything it wants known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from bench.cases import CaseSpec
from bench.ranks.request import NEWS, News, Request, is_alone
from bench.ranks.started import Started
from bench.records.record import Case, Rank
from comms.errors import RuntimeFailure
from comms.mpi.launcher import Launcher

_LOOK_S = 0.02

OnRanks = Callable[[list[Rank], str], None]


class Job:
    """Ranks that run specs for this process."""

    def __init__(
        self, launcher: Launcher, num_ranks: int, request: Request, on_ranks: OnRanks
    ) -> None:
        """Start the ranks.

        Args:
            launcher: what starts them.
            num_ranks: how many.
            request: what they run.
            on_ranks: called with who they are and MPI's name and version, when they have met.
        """
        self._on_ranks = on_ranks
        self._started = Started(launcher, num_ranks, "bench.ranks", request)
        news = self._started.folder / NEWS
        news.touch()
        self._news = news.open("rb")

    def cases(self, update: Callable[[str, float], None]) -> list[Case]:
        """Wait for the cases of the next spec.

        Args:
            update: called with (stage, fraction).

        Raises:
            EpbenchError: the job has ended.
        """
        for news in self._read():
            if news.ranks:
                self._on_ranks(news.ranks, news.library)
            if news.stage:
                update(news.stage, news.fraction)
            if news.cases:
                return news.cases
        raise self._started.error()

    def close(self) -> None:
        """End the ranks, if they have not ended by themselves."""
        self._news.close()
        self._started.close()

    def stop(self) -> None:
        """Ask the ranks to end now."""
        self._started.stop()

    def _read(self) -> Iterator[News]:
        """Return news as they come, until the ranks have ended and all is read."""
        line = b""
        while True:
            has_ended = self._started.has_ended()
            line += self._news.readline()
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=News)
                line = b""
            elif has_ended:
                return
            else:
                time.sleep(_LOOK_S)


class Dispatcher:
    """Runs specs where they belong: in this process, or on ranks started for all that need them."""

    def __init__(
        self,
        specs: Sequence[CaseSpec],
        make_request: Callable[[int, int], Request],
        on_ranks: OnRanks,
    ) -> None:
        """Start nothing yet.

        Args:
            specs: all specs, in order.
            make_request: makes the request of the ranks from this process's number and start time.
            on_ranks: told who the ranks are.
        """
        self._on_ranks = on_ranks
        self._on_ranks_specs = [spec for spec in specs if spec.device != "sim"]
        self._make_request = make_request
        self.job: Job | None = None
        self._why_not: str | None = None

    def __call__(self, spec: CaseSpec, update: Callable[[str, float], None]) -> list[Case]:
        """Run a spec and return its cases.

        Raises:
            EpbenchError: it cannot be run, or the job has ended.
        """
        if spec.device == "sim":
            from bench.harness import run_spec

            return run_spec(spec, update)
        if self.job is None and self._why_not is None:
            self._start()
        if self.job is None:
            from bench.harness import skipped_cases

            return skipped_cases(spec, str(self._why_not))
        return self.job.cases(update)

    def close(self, *, early: bool) -> None:
        """End the ranks; `early` where there is more that they would run."""
        if self.job is not None:
            if early:
                self.job.stop()
            self.job.close()

    def _start(self) -> None:
        from comms.mpi.control import start_time
        from comms.mpi.launcher import find_launcher, no_launcher
        from comms.mpi.ranks import library_name

        specs = self._on_ranks_specs
        try:
            launcher = no_launcher() if is_alone(specs) else find_launcher(library_name())
        except RuntimeFailure as error:
            self._why_not = str(error)
            return
        request = self._make_request(os.getpid(), start_time(os.getpid()))
        num_ranks = max(spec.num_processes for spec in specs)
        self.job = Job(launcher, num_ranks, request, self._on_ranks)
