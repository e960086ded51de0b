"""A GPU's own memory: emptying its cache, and the time of a copy without a kernel of ours."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from comms.cuda.errors import explained
from comms.cuda.memory import give_back
from comms.cuda.stopwatch import Stopwatch

if TYPE_CHECKING:
    from cupy.cuda import Stream

#: Bytes that are written to empty the cache, in caches.
_CACHES = 2
#: Bytes of each buffer that is copied, more than caches hold.
_COPY_BYTES = 256 * 1024 * 1024


class Hbm:
    """Buffers that nothing else uses."""

    def __init__(self, stream: Stream) -> None:
        """Allocate what empties the cache.

        Raises:
            RuntimeFailure: there is not enough GPU memory.
        """
        self._stream = stream
        self._buffers: list[int] = []
        self._watch = Stopwatch(1)
        with explained("the size of the GPU's cache cannot be asked for"):
            from cupy.cuda import runtime

            cache = runtime.getDeviceProperties(runtime.getDevice())["l2CacheSize"]
        self._flush_bytes = _CACHES * cache
        self._flushed = self._allocate(self._flush_bytes)

    def flush(self) -> None:
        """Write more than the cache holds, in the order of the stream."""
        with explained("the cache cannot be emptied"):
            from cupy.cuda import runtime

            runtime.memsetAsync(self._flushed, 0, self._flush_bytes, self._stream.ptr)

    def copy(self, num_bytes: int) -> None:
        """Copy bytes between buffers, in the order of the stream, and time it."""
        if len(self._buffers) == 1:
            self._allocate(_COPY_BYTES)
            self._allocate(_COPY_BYTES)
        _, source, target = self._buffers
        self.flush()
        with explained("GPU memory cannot be copied"):
            from cupy.cuda import runtime

            kind = runtime.memcpyDeviceToDevice
            self._watch.mark(0, self._stream, in_graph=False)
            for start in range(0, num_bytes, _COPY_BYTES):
                count = min(_COPY_BYTES, num_bytes - start)
                runtime.memcpyAsync(target, source, count, kind, self._stream.ptr)
            self._watch.mark(1, self._stream, in_graph=False)

    def copied_ns(self) -> float:
        """Return the time of the last copy, which has ended."""
        return self._watch.total_ns()

    def close(self) -> None:
        """Free the buffers; once is enough."""
        buffers, self._buffers = self._buffers, []
        for address in buffers:
            from cupy.cuda import runtime

            give_back(partial(runtime.free, address))

    def _allocate(self, num_bytes: int) -> int:
        with explained("a buffer for clearing or filling the cache cannot be had", num_bytes):
            from cupy.cuda import runtime

            self._buffers.append(runtime.malloc(num_bytes))
        return self._buffers[-1]
