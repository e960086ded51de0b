"""Windows of ranks that share one GPU and one process."""

from __future__ import annotations

from comms.cuda.errors import explained
from comms.cuda.memory import CardWindows, give_back, require
from comms.memory import Layout


class VirtualWindows(CardWindows):
    """All windows in one allocation, so that a kernel finds each by its rank.

    Attributes:
        stride: bytes from one rank's window to the next's.
    """

    def __init__(self, layout: Layout, world_size: int) -> None:
        """Allocate, zeroed.

        Raises:
            RuntimeFailure: there is not enough GPU memory.
        """
        super().__init__(layout, range(world_size))
        self.stride = layout.window_bytes
        num_bytes = self.stride * world_size
        self._memory = 0
        try:
            self._begin()
            require(num_bytes, None)
            with explained(f"windows of {world_size} ranks cannot be made", num_bytes):
                from cupy.cuda import runtime

                self._memory = runtime.malloc(num_bytes)
            self._set(self._memory, 0, num_bytes, self._stream)
        except Exception:
            self.close()
            raise
        self._bases = [self._memory + rank * self.stride for rank in self.ranks]

    def _free(self) -> None:
        if self._memory:
            from cupy.cuda import runtime

            give_back(lambda: runtime.free(self._memory))
