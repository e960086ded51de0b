"""Windows of ranks that are processes of one node, mapped into each other by CUDA IPC."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from comms.cuda.errors import explained
from comms.cuda.memory import CardWindows, give_back, require
from comms.errors import EpbenchError, RuntimeFailure
from comms.memory import Layout
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

#: A handle exports the whole block of memory that its allocation lies in; an allocation of whole
#: blocks has its own.
_BLOCK_BYTES = 2 * 1024 * 1024


class IpcWindows(CardWindows):
    """One allocation a rank; those of the same host are mapped, others are not reachable.

    An owner frees its memory after all others have unmapped it.
    """

    def __init__(self, layout: Layout, ranks: Ranks) -> None:
        """Allocate, map and zero; collective.

        Raises:
            RuntimeFailure: there is not enough GPU memory, or some rank cannot map another's; in
                the same words on all ranks, and nothing stays allocated.
        """
        super().__init__(layout, (ranks.rank,))
        self._world = ranks
        self._own = 0
        self._mapped: dict[int, int] = {}
        self._num_bytes = -(-layout.window_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        try:
            together(ranks, self._begin)
            require(self._num_bytes, ranks)
            handles = together(ranks, self._export)
            together(ranks, lambda: self._map(handles))
            self._check()
        except EpbenchError:
            self.close()
            raise

    def _export(self) -> tuple[int, bytes]:
        rank = self._world.rank
        with explained(f"the window of rank {rank} cannot be made", self._num_bytes):
            from cupy.cuda import runtime

            # Not from CuPy's pool: a handle stands for what CUDA has allocated, and the pool hands
            # out parts of that.
            self._own = runtime.malloc(self._num_bytes)
            self._set(self._own, 0, self._num_bytes, self._stream)
            return self._world.host, runtime.ipcGetMemHandle(self._own)

    def _map(self, handles: list[tuple[int, bytes]]) -> None:
        from cupy.cuda import runtime

        for peer, (host, handle) in enumerate(handles):
            # The process that exports a handle cannot open it.
            if host == self._world.host and peer != self._world.rank:
                with explained(f"rank {self._world.rank} cannot map the window of rank {peer}"):
                    self._mapped[peer] = runtime.ipcOpenMemHandle(handle)
        self._bases = [
            self._own if peer == self._world.rank else self._mapped.get(peer, 0)
            for peer in range(self._world.world_size)
        ]

    def _check(self) -> None:
        """See that each mapping shows its rank's memory; leaves zeroes."""
        own = self._world.rank
        sign = np.zeros(1, np.int64)

        def write(value: int) -> None:
            sign[0] = value
            with explained(f"the window of rank {own} cannot be written"):
                from cupy.cuda import runtime

                kind = runtime.memcpyHostToDevice
                runtime.memcpyAsync(self._own, sign.ctypes.data, 8, kind, self._stream)
                runtime.streamSynchronize(self._stream)

        def read() -> None:
            for peer in self._mapped:
                if (found := self.word(peer, 0)) != peer + 1:
                    raise RuntimeFailure(
                        f"the window of rank {peer} shows rank {own} other memory (a word is "
                        f"{found}, not {peer + 1}): CUDA IPC does not work here, use --memory nccl"
                    )

        together(self._world, lambda: write(own + 1))
        together(self._world, read)
        together(self._world, lambda: write(0))

    def _free(self) -> None:
        # No rank is inside a kernel that uses a mapping once all are here.
        self._world.comm.Barrier()
        together(self._world, self._unmap)
        if self._own:
            from cupy.cuda import runtime

            give_back(lambda: runtime.free(self._own))

    def _unmap(self) -> None:
        while self._mapped:
            from cupy.cuda import runtime

            _, base = self._mapped.popitem()
            give_back(partial(runtime.ipcCloseMemHandle, base))
