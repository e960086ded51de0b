"""What kernels note for the host, and what the host notes for them.

In the GPU's memory: the report of a wait that failed, the tokens of each rank, the times at which
ranks met and ended. In pinned memory of the host: a copy of these, and the gate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.cuda.errors import explained
from comms.cuda.machine import REPORT_BYTES, Report
from comms.cuda.memory import give_back

_WORD = 8
_WORDS_OF_REPORT = REPORT_BYTES // _WORD


class Notes:
    """The notes of the ranks on this process's GPU.

    Attributes:
        report: address of a report.
        num_tokens: address of the tokens of each rank, int64.
        stamps: address of two times of each rank, int64: when ranks had met, and after the end.
        gate: address of a word of the host: how many runs have all their launches queued.
    """

    def __init__(self, num_tokens: Sequence[int], stream: int) -> None:
        """Allocate and write.

        Raises:
            RuntimeFailure: CUDA gives no memory.
        """
        self._stream = stream
        self._num_ranks = len(num_tokens)
        self._num_bytes = REPORT_BYTES + 3 * _WORD * self._num_ranks
        self._own = self._pinned = 0
        try:
            with explained("memory of notes cannot be had", self._num_bytes):
                from cupy.cuda import runtime

                self._own = runtime.malloc(self._num_bytes)
                self._pinned = runtime.hostAlloc(self._num_bytes + _WORD, runtime.hostAllocPortable)
        except Exception:
            self.close()
            raise
        self.report = self._own
        self.num_tokens = self._own + REPORT_BYTES
        self.stamps = self.num_tokens + _WORD * self._num_ranks
        self.gate = self._pinned + self._num_bytes
        size = self._num_bytes // _WORD
        words: Any = (ctypes.c_int64 * size).from_address(self._pinned)
        self._copy: npt.NDArray[np.int64] = np.frombuffer(words, np.int64)
        self._tokens = np.array(num_tokens, np.int64)
        self.clear()

    def open_gate(self, runs: int) -> None:
        """Let ranks of this process go on that have met fewer times than so."""
        ctypes.c_int64.from_address(self.gate).value = runs

    def collect(self) -> None:
        """Copy the notes to the host, when everything before on the stream has ended."""
        with explained("notes cannot be read"):
            from cupy.cuda import runtime

            kind = runtime.memcpyDeviceToHost
            runtime.memcpyAsync(self._pinned, self._own, self._num_bytes, kind, self._stream)

    def reported(self) -> Report:
        """Return the report that was collected last."""
        return Report(*self._copy[:_WORDS_OF_REPORT].tolist())

    def stamped(self) -> npt.NDArray[np.int64]:
        """Return the times that were collected last, in nanoseconds, int64 `(num_ranks, 2)`."""
        return self._copy[_WORDS_OF_REPORT + self._num_ranks :].reshape(-1, 2).copy()

    def clear(self) -> None:
        """Forget reports and times, close the gate, and wait for it; no kernel may be running.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        self.open_gate(0)
        self._copy[:] = 0
        self._copy[_WORDS_OF_REPORT:][: self._num_ranks] = self._tokens
        with explained("notes cannot be written"):
            from cupy.cuda import runtime

            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(self._own, self._pinned, self._num_bytes, kind, self._stream)
            runtime.streamSynchronize(self._stream)

    def close(self) -> None:
        """Free the memory; once is enough."""
        if not self._own and not self._pinned:
            return
        from cupy.cuda import runtime

        own, self._own = self._own, 0
        pinned, self._pinned = self._pinned, 0
        if own:
            give_back(partial(runtime.free, own))
        if pinned:
            give_back(partial(runtime.freeHost, pinned))
