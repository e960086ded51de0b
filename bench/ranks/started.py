"""Ranks that this process has started, and what it learns of their end.

Parent and ranks speak by files in a folder of their own: `request.json` says what to run, the rank
that ends them early writes `failure.json`. Files outlive whoever wrote them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO

import msgspec

from bench.ranks.request import FAILURE, REQUEST, Failure, Request
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, error_of
from comms.mpi.launcher import Launcher

#: How long the launcher may take to end its ranks before it is killed.
_END_S = 3.0
#: Characters of what a launcher said that a sentence repeats.
_MOST_SAID = 300


class Started:
    """A launcher and its ranks.

    Attributes:
        folder: what they share with this process.
    """

    def __init__(self, launcher: Launcher, num_ranks: int, module: str, request: Request) -> None:
        """Start `python -m module folder` as so many ranks."""
        self._launcher = launcher
        self._name = launcher.path.name
        self._temporary = tempfile.TemporaryDirectory(prefix="epbench-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        (self.folder / REQUEST).write_bytes(msgspec.json.encode(request))
        # A session of its own: Ctrl-C comes to this process alone, which then ends the ranks.
        self._process = subprocess.Popen(
            launcher.command(num_ranks, [sys.executable, "-m", module, str(self.folder)]),
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

    def has_ended(self) -> bool:
        """Return whether launcher and ranks have ended."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the launcher's code.

        Raises:
            subprocess.TimeoutExpired: it has not come.
        """
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """Ask the ranks to end now."""
        if not self.has_ended():
            os.killpg(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End what has not ended by itself, and take the folder away."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._listener.join(_END_S)
        self._temporary.cleanup()

    def error(self) -> EpbenchError:
        """Return why the ranks have ended before they were done."""
        if (self.folder / FAILURE).exists():
            data = (self.folder / FAILURE).read_bytes()
            failure = msgspec.json.decode(data, type=Failure)
            return error_of(failure.exit_code, failure.sentence)
        code = self._process.returncode
        self._listener.join(_END_S)
        if number := self._launcher.signal_of(code):
            return TimeoutFailure(f"a rank died by signal {number}: {self._name} ended with {code}")
        said = " ".join(self._said)[-_MOST_SAID:] or "it said nothing"
        return RuntimeFailure(f"{self._name} ended with {code} before all ranks had run: {said}")

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            if text := line.decode(errors="replace").strip(" \t\r\n-"):
                self._said.append(text)
