"""The words that end kernels: one in each rank's window, which its kernels' waits poll.

Memory of the host that all processes' kernels see is not to be had, so the host writes into windows
while kernels run. It does so from pinned memory and on a stream of its own, which copy engines
serve; setting memory, or a copy within a GPU, would be a kernel, and wait for an SM.
"""

from __future__ import annotations

import ctypes
from functools import partial

from comms.cuda.errors import explained
from comms.cuda.memory import CardWindows, give_back

#: The region that every layout has, and its size.
REGION = "abort"
REGION_BYTES = 8
_WORD_BYTES = 8


class AbortWords:
    """Ends the kernels of all ranks that this process reaches."""

    def __init__(self, windows: CardWindows, world_size: int) -> None:
        """Prepare, so that nothing need be allocated while kernels run.

        Args:
            windows: with the region `abort`.
            world_size: ranks.

        Raises:
            RuntimeFailure: CUDA gives no stream or no pinned memory.
        """
        offset = windows.layout[REGION].offset
        bases = [windows.base(rank) for rank in range(world_size)]
        self._own = [bases[rank] + offset for rank in windows.ranks]
        self._all = [base + offset for base in bases if base]
        self._stream = 0
        self._word = 0
        try:
            with explained("the words that end kernels cannot be made"):
                from cupy.cuda import runtime

                self._device = runtime.getDevice()
                self._stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
                self._word = runtime.hostAlloc(2 * _WORD_BYTES, runtime.hostAllocPortable)
        except Exception:
            self.close()
            raise
        # The first word is 0, the second 1: copies may still be under way when the next begins.
        (ctypes.c_int64 * 2).from_address(self._word)[:] = [0, 1]

    def end(self) -> None:
        """End the kernels of all reachable ranks; from any thread, and returns at once.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        self._write(self._word + _WORD_BYTES, self._all)

    def clear(self) -> None:
        """Let kernels of this process's ranks run again, and wait for it; none may be running.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        self._write(self._word, self._own)
        with explained("kernels cannot be let run again"):
            from cupy.cuda import runtime

            runtime.streamSynchronize(self._stream)

    def close(self) -> None:
        """Free stream and memory; once is enough."""
        if not self._stream and not self._word:
            return
        from cupy.cuda import runtime

        stream, self._stream = self._stream, 0
        word, self._word = self._word, 0
        if stream:
            give_back(partial(runtime.streamDestroy, stream))
        if word:
            give_back(partial(runtime.freeHost, word))

    def _write(self, source: int, targets: list[int]) -> None:
        with explained("kernels cannot be told to end"):
            from cupy.cuda import runtime

            # The thread that watches is not the one that works.
            runtime.setDevice(self._device)
            for target in targets:
                kind = runtime.memcpyHostToDevice
                runtime.memcpyAsync(target, source, _WORD_BYTES, kind, self._stream)
