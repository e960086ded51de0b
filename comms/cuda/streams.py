"""A stream's order for the host: what it reads has been written, what it writes comes in its turn.

Nothing is allocated while kernels run: numbers pass through pinned memory that is kept.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.collectives import Buffer, HostArray
from comms.cuda.errors import explained

#: Status of a stream that is done.
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
        self._pinned: dict[int, npt.NDArray[np.uint8]] = {}
        self._written: set[int] = set()

    def settle(self) -> None:
        """Wait until all that is on the stream has ended.

        Raises:
            RuntimeFailure: it failed.
            TimeoutFailure: it takes too long.
        """
        from cupy.cuda import runtime

        deadline = time.monotonic() + _SPIN_S
        while runtime.streamQuery(self.stream) != _READY:
            if time.monotonic() > deadline:
                self._wait(self.stream, "a library's call or the kernel before it")
                break
        self._written.clear()

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

    def read(self, source: Buffer) -> HostArray:
        """Return a copy on the host, after everything before has ended."""
        with explained("a buffer cannot be read"):
            from cupy.cuda import runtime

            staged = self._stage(address_of(source), source.nbytes)
            if source.nbytes:
                kind = runtime.memcpyDeviceToHost
                from_addr = address_of(source)
                runtime.memcpyAsync(staged.ctypes.data, from_addr, source.nbytes, kind, self.stream)
        self.settle()
        values: HostArray = staged[: source.nbytes].view(source.dtype).copy()
        return values

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer, in the order of the stream."""
        address = address_of(target)
        assert target.dtype == values.dtype, f"{target.dtype=}, {values.dtype=}"
        assert values.nbytes <= target.nbytes, f"{values.nbytes=}, {target.nbytes=}"
        if address in self._written:
            # The copy before may not have read its pinned memory yet.
            self.settle()
        self._written.add(address)
        with explained("a table cannot be written"):
            from cupy.cuda import runtime

            staged = self._stage(address, target.nbytes)
            staged[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            if values.nbytes:
                kind = runtime.memcpyHostToDevice
                runtime.memcpyAsync(address, staged.ctypes.data, values.nbytes, kind, self.stream)

    def close(self) -> None:
        """Free the pinned memory; once is enough."""
        from cupy.cuda import runtime

        pinned, self._pinned = self._pinned, {}
        for staged in pinned.values():
            runtime.freeHost(staged.ctypes.data)

    def _stage(self, address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Return the pinned memory that stands for a buffer."""
        from cupy.cuda import runtime

        kept = self._pinned.get(address)
        if kept is not None and len(kept) >= num_bytes:
            return kept
        if kept is not None:
            self.settle()
            runtime.freeHost(kept.ctypes.data)
        pinned = runtime.hostAlloc(max(num_bytes, 1), runtime.hostAllocPortable)
        memory: Any = (ctypes.c_uint8 * max(num_bytes, 1)).from_address(pinned)
        self._pinned[address] = np.frombuffer(memory, np.uint8)
        return self._pinned[address]


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
