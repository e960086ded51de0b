"""The job that a lone process starts: one launch of ranks for all specs that need them.

Parent and ranks speak by files in a folder of the job: `request.json` says what to run, the first
rank appends a line to `news.jsonl` for everything it wants known, and the rank that ends the job
early writes `failure.json`. Files outlive whoever wrote them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from bench.cases import CaseSpec
from bench.ranks.request import FAILURE, NEWS, REQUEST, Failure, News, Request
from bench.records.record import Case, Rank
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, error_of
from comms.mpi.launcher import Launcher

_LOOK_S = 0.02
#: How long the launcher may take to end its ranks before it is killed.
_END_S = 3.0
#: Signals that a launcher reports as 128 + number where a rank did not end by itself.
_KILLED = 128


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
        self._launcher = launcher
        self._folder = tempfile.TemporaryDirectory(prefix="epbench-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        (folder / REQUEST).write_bytes(msgspec.json.encode(request))
        (folder / NEWS).touch()
        self._failure = folder / FAILURE
        self._news = (folder / NEWS).open("rb")
        # A session of its own: Ctrl-C comes to this process alone, which then ends the ranks.
        self._process = subprocess.Popen(
            launcher.command(num_ranks, [sys.executable, "-m", "bench.ranks", str(folder)]),
            env=launcher.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._said: deque[str] = deque(maxlen=40)
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()

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
        raise self._error()

    def close(self) -> None:
        """End the ranks, if they have not ended by themselves."""
        if self._process.poll() is None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._listener.join(_END_S)
        self._news.close()
        self._folder.cleanup()

    def stop(self) -> None:
        """Ask the ranks to end now."""
        if self._process.poll() is None:
            self._process.terminate()

    def _read(self) -> Iterator[News]:
        """Return news as they come, until the ranks have ended and all is read."""
        line = b""
        while True:
            has_ended = self._process.poll() is not None
            line += self._news.readline()
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=News)
                line = b""
            elif has_ended:
                return
            else:
                time.sleep(_LOOK_S)

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            if text := line.decode(errors="replace").strip(" \t\r\n-"):
                self._said.append(text)

    def _error(self) -> EpbenchError:
        if self._failure.exists():
            failure = msgspec.json.decode(self._failure.read_bytes(), type=Failure)
            return error_of(failure.exit_code, failure.sentence)
        code = self._process.returncode
        self._listener.join(_END_S)
        if code < 0 or code > _KILLED:
            return TimeoutFailure(
                f"a rank was killed: {self._launcher.path.name} ended with {abs(code)}"
            )
        said = " ".join(self._said)
        return RuntimeFailure(
            f"{self._launcher.path.name} ended with {code} before all ranks had run: "
            f"{said[-_MOST_SAID:] or 'it said nothing'}"
        )


_MOST_SAID = 300


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
        self._sizes = [spec.world_size for spec in specs if spec.device != "sim"]
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
        from comms.mpi.launcher import find_launcher
        from comms.mpi.ranks import library_name

        try:
            launcher = find_launcher(library_name())
        except RuntimeFailure as error:
            self._why_not = str(error)
            return
        request = self._make_request(os.getpid(), start_time(os.getpid()))
        self.job = Job(launcher, max(self._sizes), request, self._on_ranks)
