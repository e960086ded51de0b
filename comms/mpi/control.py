"""The page that all ranks of a host share: who lives, what each does, and the end of the job.

Every rank writes its own row and reads the others'; a row's words are written by one process. The
words at the start are claimed by compare-and-swap, so that one rank tells the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from comms.mpi.alone import AloneComm

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

Words = npt.NDArray[np.int64]

_HEAD = 8
_ABORT, _EXIT, _TURN = range(3)
_ROW = 32
_PID, _STARTED, _DONE, _LEAVING, _STAGE = range(5)
_STAGE_BYTES = 8 * (_ROW - _STAGE)


class Control:
    """The shared page of a job.

    Attributes:
        rank: this process.
        world_size: ranks of the job.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Allocate the page; collective."""
        self._claim = _claim()
        self.rank = ranks.rank
        self.world_size = ranks.world_size
        self._words = self._allocate(ranks, _HEAD + _ROW * ranks.world_size)
        if ranks.rank == 0:
            self._words[:] = 0
        ranks.comm.Barrier()
        row = self._row(self.rank)
        row[_PID] = os.getpid()
        row[_STARTED] = start_time(os.getpid())
        ranks.comm.Barrier()

    def _allocate(self, ranks: Ranks, num_words: int) -> Words:
        """Return words that all ranks share."""
        if isinstance(ranks.comm, AloneComm):
            return np.zeros(num_words, np.int64)
        from mpi4py import MPI

        num_bytes = 8 * num_words if ranks.rank == 0 else 0
        self._window = MPI.Win.Allocate_shared(num_bytes, 1, comm=ranks.comm)
        buffer, _ = self._window.Shared_query(0)
        words: Words = np.asarray(buffer, np.uint8).view(np.int64)
        return words

    @property
    def abort_address(self) -> int:
        """Address of the word that every wait of a kernel polls."""
        return int(self._words.ctypes.data) + 8 * _ABORT

    def clear_abort(self) -> None:
        """Let kernels run again; no kernel may be running."""
        self._words[_ABORT] = 0

    def set_turn(self, turn: int) -> None:
        """Let ranks go on that wait for their turn."""
        self._words[_TURN] = turn

    def turn(self) -> int:
        """Return the last turn that was set."""
        return int(self._words[_TURN])

    def claim_exit(self, exit_code: int) -> bool:
        """End the job with a code that is not 0; return whether this rank was the first to."""
        self._words[_ABORT] = 1
        was = self._claim(int(self._words.ctypes.data) + 8 * _EXIT, exit_code)
        return bool(was == 0)

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
        """Return what a rank said last."""
        data = bytes(self._row(rank)[_STAGE:].view(np.uint8))
        return data.rstrip(b"\0").decode(errors="replace")

    def set_done(self) -> None:
        """Say that this rank's process may end from now on."""
        self._row(self.rank)[_DONE] = 1

    def set_leaving(self) -> None:
        """Say that this rank ends because of the exit code."""
        self._row(self.rank)[_LEAVING] = 1

    def all_leaving(self) -> bool:
        """Return whether every rank ends, is done or is dead."""
        rows = [self._row(rank) for rank in range(self.world_size)]
        return all(row[_LEAVING] or row[_DONE] or not _is_alive(row) for row in rows)

    def dead_ranks(self) -> list[int]:
        """Return the ranks whose processes ended before they were done."""
        rows = [self._row(rank) for rank in range(self.world_size)]
        return [
            rank
            for rank, row in enumerate(rows)
            if not (row[_DONE] or row[_LEAVING] or _is_alive(row))
        ]

    def _row(self, rank: int) -> Words:
        start = _HEAD + _ROW * rank
        return self._words[start : start + _ROW]


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


@cache
def _claim() -> Callable[[int, int], int]:
    """Return a compare-and-swap of a word from 0, callable from Python."""
    from numba import njit

    from comms import atomics
    from comms.compiling import use_cache

    use_cache()

    def claim_word(address: int, value: int) -> int:
        was: int = atomics.claim(address, value)
        return was

    compiled: Callable[[int, int], int] = njit("int64(int64, int64)", cache=True)(claim_word)
    return compiled
