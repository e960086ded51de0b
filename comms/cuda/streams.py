"""A stream's order for the host: what it reads has been written, what it writes comes in its turn.

Nothing is allocated while kernels run: numbers pass through pinned memory that is kept.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.collectives import Buffer, HostArray
from comms.cuda.errors import explained
from comms.cuda.memory import give_back

#: Status of a stream or an event that is done.
_READY = 0
#: How long the host looks at a stream without a pause. Counts are read while a kernel of some
#: hundred microseconds runs, and a sleep would be part of the measured time.
_SPIN_S = 0.05


class StreamMemory:
    """The buffers of one GPU, as the host reaches them in the order of a stream."""

    def __init__(self, stream: int, wait: Callable[[int, str], None]) -> None:
        """Work in the order of a stream of the current GPU.

        Args:
            stream: its handle.
            wait: called with the stream and with what it is waited for where that takes long; it
                returns when the stream is done, or raises.
        """
        self.stream = stream
        self._wait = wait
        self._pinned: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}
        #: Tables whose copies may not have been read, and those of them before the last `fetch`.
        self._written: set[int] = set()
        self._fenced: set[int] = set()
        self._event = 0
        self._coming: list[HostArray] | None = None

    def settle(self) -> None:
        """Wait until all that is on the stream has ended.

        Raises:
            RuntimeFailure: it failed.
            TimeoutFailure: it takes too long.
        """
        from cupy.cuda import runtime

        self._spin(lambda: int(runtime.streamQuery(self.stream)))
        self._written.clear()
        self._fenced.clear()

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""
        with explained("a buffer cannot be cleared"):
            from cupy.cuda import runtime

            if target.nbytes:
                runtime.memsetAsync(address_of(target), 0, target.nbytes, self.stream)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copy bytes within the GPU."""
        with explained("rows of the own rank cannot be copied"):
            from cupy.cuda import runtime

            kind = runtime.memcpyDeviceToDevice
            runtime.memcpyAsync(target, source, num_bytes, kind, self.stream)

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Begin to copy buffers to the host."""
        assert self._coming is None, "what was fetched before has not been taken"
        with explained("a buffer cannot be read"):
            from cupy.cuda import runtime

            self._coming = []
            for source in sources:
                from_addr, num_bytes = address_of(source), source.nbytes
                staged = self._stage("read", from_addr, num_bytes)
                self._coming.append(staged[:num_bytes].view(source.dtype))
                if num_bytes:
                    kind = runtime.memcpyDeviceToHost
                    into = staged.ctypes.data
                    runtime.memcpyAsync(into, from_addr, num_bytes, kind, self.stream)
            if not self._event:
                self._event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
            runtime.eventRecord(self._event, self.stream)
        self._fenced |= self._written
        self._written.clear()

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last `fetch`, when they and what was before have ended.

        Raises:
            RuntimeFailure: it failed.
            TimeoutFailure: it takes too long.
        """
        from cupy.cuda import runtime

        coming, self._coming = self._coming, None
        assert coming is not None, "nothing was fetched"
        self._spin(lambda: int(runtime.eventQuery(self._event)))
        self._fenced.clear()
        return [values.copy() for values in coming]

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer, in the order of the stream."""
        address = address_of(target)
        assert target.dtype == values.dtype, f"{target.dtype=}, {values.dtype=}"
        assert values.nbytes <= target.nbytes, f"{values.nbytes=}, {target.nbytes=}"
        if address in self._written or address in self._fenced:
            # The copy before may not have read its pinned memory yet.
            self.settle()
        self._written.add(address)
        with explained("a table cannot be written"):
            from cupy.cuda import runtime

            staged = self._stage("write", address, target.nbytes)
            staged[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            if values.nbytes:
                kind = runtime.memcpyHostToDevice
                runtime.memcpyAsync(address, staged.ctypes.data, values.nbytes, kind, self.stream)

    def close(self) -> None:
        """Free the pinned memory; once is enough."""
        from cupy.cuda import runtime

        pinned, self._pinned = self._pinned, {}
        for staged in pinned.values():
            give_back(partial(runtime.freeHost, staged.ctypes.data))
        event, self._event = self._event, 0
        if event:
            give_back(partial(runtime.eventDestroy, event))

    def _spin(self, status: Callable[[], int]) -> None:
        """Look until a status says that work is done, and leave it to `wait` where that is long."""
        deadline = time.monotonic() + _SPIN_S
        while status() != _READY:
            if time.monotonic() > deadline:
                self._wait(self.stream, "a library's call or the kernel before it")
                break

    def _stage(self, use: str, address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Return the pinned memory that a buffer is read to, or written from."""
        from cupy.cuda import runtime

        kept = self._pinned.get((use, address))
        if kept is not None and len(kept) >= num_bytes:
            return kept
        if kept is not None:
            self.settle()
            runtime.freeHost(kept.ctypes.data)
        pinned = runtime.hostAlloc(max(num_bytes, 1), runtime.hostAllocPortable)
        memory: Any = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(pinned)
        self._pinned[use, address] = np.frombuffer(memory, np.uint8)
        return self._pinned[use, address]


def plain_wait(stream: int, what: str) -> None:
    """Wait for a stream on which only kernels are, which end by themselves.

    Raises:
        RuntimeFailure: one of them failed.
    """
    with explained(what):
        from cupy.cuda import runtime

        runtime.streamSynchronize(stream)


def address_of(buffer: Buffer) -> int:
    """Return where a CuPy array begins."""
    return int(buffer.data.ptr)
