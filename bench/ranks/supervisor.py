"""Each rank's main thread: it watches while the work is done on another thread.

Signals reach Python code on the main thread only, and not while that is inside compiled code or
MPI; so the main thread does neither. It ends its process when a signal comes, when another rank
has died or has ended the job, or when its own work makes no step for too long. The first rank to
see a cause claims it on the shared page and tells it; all exit with its code. Other hosts have a
page of their own, and are told the code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from comms.errors import EpbenchError, Interrupted, TimeoutFailure
from comms.mpi.launched import let_first_speak

if TYPE_CHECKING:
    from comms.mpi.control import Control

_LOOK_S = 0.02
#: How much later than a kernel's wait a rank's step is over: the kernel's report says more.
_MARGIN_S = 2.0
#: How long the rank that tells the cause waits for the others, so that all leave with one code.
_LEAVE_S = 1.0
#: How long a signal waits for a cause on another host: launchers end the ranks of all hosts when
#: one has died.
_CAUSE_S = 0.3


class Supervisor:
    """Watches over one rank.

    Attributes:
        control: the page shared with the other ranks, None until they have met.
        save: keeps what is done so far; returns words about it.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        tell: Callable[[int, str], None],
        parent: tuple[int, int] | None = None,
    ) -> None:
        """Start the clock.

        Args:
            timeout_s: longest wait of a kernel; a step may take a little more.
            tell: called with exit code and sentence by the rank that ends the job.
            parent: number and start time of a process without which the job has no purpose.
        """
        self.control: Control | None = None
        self.save: Callable[[], str] = str
        self._tell = tell
        self._limit_s = timeout_s + _MARGIN_S
        self._parent = parent
        self._lock = threading.RLock()
        self._is_saved = False
        self._is_detached = False
        self._signal: int | None = None
        self._signalled = 0.0
        self._stage = "start"
        self._step_s = self._limit_s
        self._deadline = time.monotonic() + self._limit_s
        self._result: int | None = None
        self._failure: tuple[int, str] | None = None

    def watch(self, stage: str, least_s: float = 0.0) -> None:
        """Note the step that the work is at, which has a time limit of its own.

        Args:
            stage: what it is.
            least_s: what it may take however short the limit is, as compilation does.
        """
        self._stage = stage
        self._step_s = max(self._limit_s, least_s)
        self._deadline = time.monotonic() + self._step_s
        if self.control is not None:
            self.control.set_stage(stage)

    def detach(self) -> None:
        """Look at the shared page no more: every spec has run, and MPI takes it away."""
        with self._lock:
            self.control = None
            self._is_detached = True
        self.watch("MPI's end")

    def rest(self) -> None:
        """Note that the work waits for its turn, for as long as that takes."""
        self.watch("its turn")
        self._deadline = float("inf")

    def run(self, work: Callable[[], int]) -> int:
        """Do the work on another thread and return its exit code; ends the process otherwise."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        thread = threading.Thread(target=self._work, args=(work,), daemon=True, name="work")
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
            self._look()
        if self._failure is not None:
            self._end(*self._failure)
        assert self._result is not None
        return self._result

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is None:
            self._signalled = time.monotonic()
        self._signal = number

    def _work(self, work: Callable[[], int]) -> None:
        try:
            self._result = work()
        except EpbenchError as error:
            self._failure = (error.exit_code, str(error))
        except BaseException as error:  # noqa: BLE001
            where = "" if self.control is None else f" in {self._stage}"
            sentence = f"internal error{where}: {type(error).__name__}: {error}"
            self._failure = (EpbenchError.exit_code, sentence)

    def _look(self) -> None:
        from comms.mpi.control import start_time

        with self._lock:
            control = self.control
            if control is not None:
                if control.exit_code():
                    self._leave(control.exit_code())
                if dead := control.dead_ranks():
                    self._end(TimeoutFailure.exit_code, _describe_dead(control, dead))
            if self._signal is not None and not self._may_be_told():
                name = "Ctrl-C" if self._signal == signal.SIGINT else "SIGTERM"
                self._end(Interrupted.exit_code, f"interrupted by {name} at {self._stage}")
            if self._parent is not None and start_time(self._parent[0]) != self._parent[1]:
                self._end(TimeoutFailure.exit_code, "the process that started the ranks is gone")
            if time.monotonic() > self._deadline:
                self._end(TimeoutFailure.exit_code, self._describe_late())

    def _may_be_told(self) -> bool:
        """Return whether another host may still tell why a signal has come."""
        if self.control is None or self.control.num_hosts == 1:
            return False
        return time.monotonic() - self._signalled < _CAUSE_S

    def _describe_late(self) -> str:
        waited = f"made no step for {self._step_s:g} s at {self._stage}"
        control = self.control
        if self._is_detached:
            return f"MPI did not end within {self._step_s:g} s; all specs have run"
        if control is None:
            return f"a rank {waited}: not every rank that was launched is there"
        others = [
            f"rank {rank} is at {control.stage(rank)}"
            for rank in control.ranks
            if rank != control.rank and control.stage(rank) != self._stage
        ]
        near = "the others" if control.num_hosts == 1 else "the others of its host"
        return f"rank {control.rank} {waited}; {'; '.join(others) or f'{near} are there, too'}"

    def _end(self, exit_code: int, sentence: str) -> NoReturn:
        """End the job because of this rank, unless another has ended it."""
        if self.control is not None:
            is_first = self.control.claim_exit(exit_code)
            if not is_first or self.control.is_told_elsewhere():
                self._leave(self.control.exit_code())
        kept = self._save()
        if self.control is None:
            # The ranks have not met, or meet no more: no page tells who ends the job.
            let_first_speak()
        self._tell(exit_code, f"{sentence}; {kept}" if kept else sentence)
        self._leave(exit_code)

    def _leave(self, exit_code: int) -> NoReturn:
        self._save()
        control = self.control
        if control is not None:
            control.set_leaving()
            end = time.monotonic() + _LEAVE_S
            while not control.all_leaving() and time.monotonic() < end:
                time.sleep(_LOOK_S)
            # Another host may have been the first to end the job.
            exit_code = control.exit_code()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    def _save(self) -> str:
        if self._is_saved:
            return ""
        self._is_saved = True
        return self.save()


def _describe_dead(control: Control, dead: list[int]) -> str:
    ranks = ", ".join(f"rank {rank} at {control.stage(rank) or 'start'}" for rank in dead)
    return f"{'a rank' if len(dead) == 1 else 'ranks'} died: {ranks}"
