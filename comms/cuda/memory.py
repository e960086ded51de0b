"""Windows in GPU memory: what all kinds of them share, and what the host does with them.

The host's copies are made on a stream of their own, which waits for no kernel: kernels that use the
same memory must have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.cuda.errors import explained, is_fatal
from comms.errors import RuntimeFailure
from comms.memory import Layout
from comms.mpi.together import together

if TYPE_CHECKING:
    from collections.abc import Callable

    from comms.mpi.ranks import Ranks

#: Memory that is left alone: code, stacks of kernels and what libraries need.
MARGIN_BYTES = 256 * 1024 * 1024


def require(num_bytes: int, ranks: Ranks | None) -> None:
    """Refuse on every rank what does not fit on some rank's GPU; collective.

    Args:
        num_bytes: bytes of this rank.
        ranks: the world, None where it is this process alone.

    Raises:
        RuntimeFailure: a GPU has less; in the same words on all ranks.
    """

    def look() -> tuple[int, int, int]:
        with explained("free GPU memory cannot be asked for"):
            from cupy.cuda import runtime

            free, total = runtime.memGetInfo()
            return free - num_bytes - MARGIN_BYTES, free, total

    found = [look()] if ranks is None else together(ranks, look)
    left, free, total = min(found)
    if left < 0:
        rank = found.index((left, free, total))
        raise RuntimeFailure(
            f"{num_bytes / 1e9:.3f} GB of GPU memory are needed for windows, the GPU of rank "
            f"{rank} has {free / 1e9:.3f} of {total / 1e9:.1f} GB free, of which "
            f"{MARGIN_BYTES / 1e9:.1f} GB are left alone: use fewer tokens or ranks, or end what "
            "else uses it (nvidia-smi shows it)"
        )


class CardWindows:
    """The windows of a world, as far as this process addresses them.

    Attributes:
        layout: regions of every window.
        ranks: those whose windows are this process's own.
    """

    layout: Layout
    ranks: Sequence[int]

    def __init__(self, layout: Layout, ranks: Sequence[int]) -> None:
        """Ask for nothing; the subclass calls `_begin` and fills in the bases."""
        self.layout = layout
        self.ranks = ranks
        self._bases: list[int] = []
        self._is_closed = False
        self._device = 0
        self._stream = 0

    def _begin(self) -> None:
        """Make the stream of the host's copies, on this thread's GPU."""
        with explained("a stream cannot be made"):
            from cupy.cuda import runtime

            self._device = runtime.getDevice()
            self._stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)

    def base(self, rank: int) -> int:
        """Return the address of a rank's window in this process, 0 where it is not reachable."""
        return self._bases[rank]

    def word(self, rank: int, offset: int) -> int:
        """Return the int64 word at an offset of a rank's window, which may be another's."""
        word = np.empty(1, np.int64)
        self._copy_out(word, self._address(rank, offset, 8), None)
        return int(word[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> Any:  # noqa: ANN401
        """Return a region of an own rank as a flat CuPy array that shares its memory."""
        assert rank in self.ranks, f"{rank=} is not of this process"
        region = self.layout[name]
        from cupy import ndarray
        from cupy.cuda import MemoryPointer, UnownedMemory

        address = self._address(rank, region.offset, region.num_bytes)
        memory = UnownedMemory(address, region.num_bytes, self, self._device)
        size = region.num_bytes // np.dtype(dtype).itemsize
        return ndarray((size,), dtype, memptr=MemoryPointer(memory, 0))

    def write(
        self,
        rank: int,
        name: str,
        array: npt.NDArray[Any],
        at: int = 0,
        *,
        stream: int | None = None,
    ) -> None:
        """Copy an array into a region, and wait for it.

        Args:
            rank: whose window.
            name: region.
            array: in host memory.
            at: bytes from the region's start.
            stream: handle of the stream whose work comes first, the windows' own by default.

        Raises:
            RuntimeFailure: the copy, or a kernel before it, has failed.
        """
        source = np.ascontiguousarray(array)
        address = self._inside(rank, name, at, source.nbytes)
        if source.nbytes == 0:
            return
        with explained(f"{name} of rank {rank} cannot be written"):
            from cupy.cuda import runtime

            on = self._stream if stream is None else stream
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(address, source.ctypes.data, source.nbytes, kind, on)
            runtime.streamSynchronize(on)

    def read(
        self,
        rank: int,
        name: str,
        dtype: npt.DTypeLike = np.uint8,
        at: int = 0,
        num_bytes: int | None = None,
        *,
        stream: int | None = None,
    ) -> npt.NDArray[Any]:
        """Return a copy of a region, or of so many of its bytes, as a flat array in host memory.

        Args:
            rank: whose window.
            name: region.
            dtype: of the array.
            at: bytes from the region's start.
            num_bytes: how many, None for all that follow.
            stream: handle of the stream whose work comes first, the windows' own by default.

        Raises:
            RuntimeFailure: the copy, or a kernel before it, has failed.
        """
        count = self.layout[name].num_bytes - at if num_bytes is None else num_bytes
        array = np.empty(count // np.dtype(dtype).itemsize, dtype)
        address = self._inside(rank, name, at, array.nbytes)
        if array.nbytes:
            self._copy_out(array, address, stream)
        return array

    def fill(
        self, rank: int, name: str, byte: int, num_bytes: int, *, stream: int | None = None
    ) -> None:
        """Set the first bytes of a region, and wait for it.

        Raises:
            RuntimeFailure: it has failed.
        """
        address = self._inside(rank, name, 0, num_bytes)
        if num_bytes:
            self._set(address, byte, num_bytes, self._stream if stream is None else stream)

    def close(self) -> None:
        """Free the windows; once is enough."""
        if self._is_closed:
            return
        self._is_closed = True
        self._free()
        if self._stream:
            from cupy.cuda import runtime

            give_back(lambda: runtime.streamDestroy(self._stream))

    def _free(self) -> None:
        raise NotImplementedError

    def _inside(self, rank: int, name: str, at: int, num_bytes: int) -> int:
        region = self.layout[name]
        is_inside = 0 <= at <= region.num_bytes - num_bytes
        assert is_inside, f"{name=} {at=} {num_bytes=} {region.num_bytes=}"
        return self._address(rank, region.offset + at, num_bytes)

    def _address(self, rank: int, offset: int, num_bytes: int) -> int:
        assert 0 <= offset <= self.layout.window_bytes - num_bytes, f"{offset=} {num_bytes=}"
        assert not self._is_closed, "the windows are closed"
        base = self._bases[rank]
        assert base, f"the window of {rank=} is not reachable"
        return base + offset

    def _copy_out(self, array: npt.NDArray[Any], address: int, stream: int | None) -> None:
        with explained("GPU memory cannot be read"):
            from cupy.cuda import runtime

            on = self._stream if stream is None else stream
            kind = runtime.memcpyDeviceToHost
            runtime.memcpyAsync(array.ctypes.data, address, array.nbytes, kind, on)
            runtime.streamSynchronize(on)

    def _set(self, address: int, byte: int, num_bytes: int, stream: int) -> None:
        with explained("GPU memory cannot be set"):
            from cupy.cuda import runtime

            runtime.memsetAsync(address, byte, num_bytes, stream)
            runtime.streamSynchronize(stream)


def give_back(step: Callable[[], object]) -> None:
    """Take a step of freeing.

    After a kernel has failed nothing of its process can be freed: its end does so.

    Raises:
        RuntimeFailure: the step failed for another reason.
    """
    try:
        with explained("GPU memory cannot be freed"):
            step()
    except RuntimeFailure as error:
        if not is_fatal(error.__cause__ or error):
            raise
