"""The page that all ranks of a host share: who lives, what each does, and the end of the job.

Every rank writes its own row and reads the others'; a row's words are written by one process. The
words at the start are claimed by compare-and-swap, so that one rank tells the reason. Where ranks
are on several hosts each host has a page, and a relay tells the others what it says.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from comms.mpi.alone import AloneComm
from comms.mpi.claim import claim
from comms.mpi.relay import Relay, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from comms.mpi.ranks import Ranks

Words = npt.NDArray[np.int64]

_HEAD = 8
#: The fourth: how often kernels were let run again. Then whose host's the exit code is, 1 for the
#: first, 0 where a rank of this one has claimed it; and whether the ranks of all hosts end.
_ABORT, _EXIT, _TURN, _GENERATION, _ORIGIN, _HOSTS_LEAVING = range(6)
_ROW = 32
_PID, _STARTED, _DONE, _LEAVING, _STAGE = range(5)
_STAGE_BYTES = 8 * (_ROW - _STAGE)
#: How long a claim of the job's end may be on its way from another host.
_FLIGHT_S = 0.2
_POLL_S = 0.002


class Control:
    """The shared page of a job on this rank's host.

    Attributes:
        rank: this process.
        ranks: those of this host, by their numbers in the job.
        num_hosts: hosts of the job.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Allocate the page; collective.

        Raises:
            UsageError: ranks are on several hosts and MPI cannot relay between them.
        """
        self._claim = claim()
        self._lock = threading.Lock()
        self.rank = ranks.rank
        self.num_hosts = ranks.num_hosts
        self._host = ranks.host
        near = ranks.comm if ranks.num_hosts == 1 else _near(ranks)
        self.ranks = tuple(near.allgather(ranks.rank))
        self._words = self._allocate(near, _HEAD + _ROW * len(self.ranks))
        if near.rank == 0:
            self._words[:] = 0
        near.Barrier()
        row = self._row(self.rank)
        row[_PID] = os.getpid()
        row[_STARTED] = start_time(os.getpid())
        ranks.comm.Barrier()
        self._relay = Relay(ranks, self) if ranks.num_hosts > 1 else None

    def _allocate(self, near: Intracomm, num_words: int) -> Words:
        """Return words that all ranks of the host share."""
        if isinstance(near, AloneComm):
            return np.zeros(num_words, np.int64)
        from mpi4py import MPI

        num_bytes = 8 * num_words if near.rank == 0 else 0
        self._window = MPI.Win.Allocate_shared(num_bytes, 1, comm=near)
        buffer, _ = self._window.Shared_query(0)
        words: Words = np.asarray(buffer, np.uint8).view(np.int64)
        return words

    def close(self) -> None:
        """End the relay between hosts, when every rank is done; all ranks must come.

        Raises:
            TimeoutFailure: MPI does not return to it, and so cannot be ended.
        """
        if self._relay is not None:
            self._relay.close()

    @property
    def abort_address(self) -> int:
        """Address of the word that every wait of a kernel polls."""
        return int(self._words.ctypes.data) + 8 * _ABORT

    def generation(self) -> int:
        """Return how often kernels were let run again."""
        return int(self._words[_GENERATION])

    def clear_abort(self, generation: int) -> None:
        """Let kernels run again; none may be running, and the first rank of each host calls it.

        Args:
            generation: the new one, by which other hosts' word of an end that came too late is
                told from the next one's.
        """
        with self._lock:
            self._begin(generation, is_aborted=0)

    def _begin(self, generation: int, is_aborted: int) -> None:
        self._words[_ABORT] = is_aborted
        self._words[_GENERATION] = generation
        # Of a job that ends no kernel runs again, whenever a rank has claimed it.
        if self.exit_code():
            self._words[_ABORT] = 1

    def set_turn(self, turn: int) -> None:
        """Let ranks go on that wait for their turn."""
        self._words[_TURN] = turn

    def turn(self) -> int:
        """Return the last turn that was set."""
        return int(self._words[_TURN])

    def claim_exit(self, exit_code: int) -> bool:
        """End the job with a code that is not 0; return whether this rank was the first to.

        The first of its host: see `is_told_elsewhere`.
        """
        was = self._claim(int(self._words.ctypes.data) + 8 * _EXIT, exit_code)
        self._words[_ABORT] = 1
        return bool(was == 0)

    def is_told_elsewhere(self) -> bool:
        """Return whether another host tells why the job ends, after a claim of this one.

        Of hosts that claim it at the same time the first one tells the reason.
        """
        if self.num_hosts == 1 or self._host == 0:
            return False
        deadline = time.monotonic() + _FLIGHT_S
        while not self._words[_ORIGIN] and time.monotonic() < deadline:
            self._tell_for_dead()
            time.sleep(_POLL_S)
        return bool(self._words[_ORIGIN])

    def set_hosts_leaving(self) -> None:
        """Note that the ranks of all hosts end."""
        self._words[_HOSTS_LEAVING] = 1

    def _tell_for_dead(self) -> None:
        """Tell other hosts of the end where the first rank, whose thread does so, is dead."""
        if self._relay is None or _is_alive(self._row(self.ranks[0])):
            return
        state = self.state()
        if self._relay.tell(state) and state.is_leaving:
            self.set_hosts_leaving()

    def state(self) -> State:
        """Return what other hosts shall know."""
        with self._lock:
            # The turn first: who knows of it knows the generation that it began in.
            turn, generation, is_aborted = (
                int(self._words[word]) for word in (_TURN, _GENERATION, _ABORT)
            )
            claimed = 0 if self._words[_ORIGIN] else self.exit_code()
            is_leaving = self.exit_code() and self._are_leaving()
            return State(
                self._host, turn, generation, int(is_aborted != 0), claimed, int(bool(is_leaving))
            )

    def adopt(self, state: State) -> None:
        """Take over what another host has told."""
        words = self._words
        with self._lock:
            if state.generation > words[_GENERATION]:
                self._begin(state.generation, state.is_aborted)
            elif state.generation == words[_GENERATION] and state.is_aborted:
                words[_ABORT] = words[_ABORT] or 1
            if state.host == 0:
                words[_TURN] = state.turn
            if state.exit_code:
                is_first = self.claim_exit(state.exit_code)
                origin = int(words[_ORIGIN]) - 1 if words[_ORIGIN] else self._host
                if is_first or state.host < origin:
                    words[_EXIT] = state.exit_code
                    words[_ORIGIN] = state.host + 1

    def exit_code(self) -> int:
        """Return the code that the job ends with, 0 while it goes on."""
        return int(self._words[_EXIT])

    def set_stage(self, text: str) -> None:
        """Say what this rank does now."""
        data = text.encode()[: _STAGE_BYTES - 1]
        stage = self._row(self.rank)[_STAGE:].view(np.uint8)
        stage[: len(data)] = np.frombuffer(data, np.uint8)
        stage[len(data) :] = 0

    def stage(self, rank: int) -> str:
        """Return what a rank of this host said last."""
        data = bytes(self._row(rank)[_STAGE:].view(np.uint8))
        return data.rstrip(b"\0").decode(errors="replace")

    def set_done(self) -> None:
        """Say that this rank's process may end from now on."""
        self._row(self.rank)[_DONE] = 1

    def set_leaving(self) -> None:
        """Say that this rank ends because of the exit code."""
        self._row(self.rank)[_LEAVING] = 1

    def all_leaving(self) -> bool:
        """Return whether every rank, of all hosts, ends, is done or is dead."""
        if self._relay is None:
            return self._are_leaving()
        if not self._words[_HOSTS_LEAVING]:
            self._tell_for_dead()
        return self._are_leaving() and bool(self._words[_HOSTS_LEAVING])

    def _are_leaving(self) -> bool:
        rows = [self._row(rank) for rank in self.ranks]
        return all(row[_LEAVING] or row[_DONE] or not _is_alive(row) for row in rows)

    def dead_ranks(self) -> list[int]:
        """Return the ranks of this host whose processes ended before they were done."""
        rows = [(rank, self._row(rank)) for rank in self.ranks]
        return [rank for rank, row in rows if not (row[_DONE] or row[_LEAVING] or _is_alive(row))]

    def _row(self, rank: int) -> Words:
        start = _HEAD + _ROW * self.ranks.index(rank)
        return self._words[start : start + _ROW]


def _near(ranks: Ranks) -> Intracomm:
    """Return the communicator of this host's ranks; collective."""
    from mpi4py.MPI import Intracomm

    return Intracomm(ranks.comm.Split(ranks.host, ranks.rank))


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot, -1 where it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    # A zombie has ended; its parent has not looked yet.
    return -1 if fields[0] in "ZX" else int(fields[19])


def _is_alive(row: Words) -> bool:
    return start_time(int(row[_PID])) == int(row[_STARTED])
