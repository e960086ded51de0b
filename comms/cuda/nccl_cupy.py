"""NCCL by CuPy."""

from __future__ import annotations

import warnings
from typing import Any

from comms.cuda.errors import INSTALL, explained, nccl_words
from comms.cuda.nccl_library import SUM, UINT8, Budget, Link
from comms.errors import RuntimeFailure, UsageError


class CupyNccl:
    """NCCL by CuPy, which knows neither budgets nor windows."""

    def __init__(self) -> None:
        """Load package and library.

        Raises:
            RuntimeFailure: one is missing.
        """
        with explained("NCCL cannot be loaded by CuPy"):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                from cupy.cuda import nccl
            if not nccl.available:
                why = " ".join(str(said[0].message).split()) if said else "it is not available"
                raise RuntimeFailure(f"NCCL cannot be loaded by CuPy ({why}): {INSTALL}")
            self._nccl: Any = nccl
            self.version = int(nccl.get_version())

    def unique_id(self) -> bytes:
        """Return a new name of a communicator."""
        return bytes(self._nccl.get_unique_id())

    def connect(self, name: bytes, world_size: int, rank: int, budget: Budget) -> Link:
        """Make a communicator; collective."""
        return CupyLink(self, self._nccl.NcclCommunicator(world_size, name, rank), world_size)

    def refuses(self, budget: Budget) -> str | None:
        """Return why it cannot keep to a budget, None where it can."""
        return None if budget is None else "CuPy's binding of NCCL sets no CTAs"

    def group_start(self) -> None:
        """Begin calls that are carried out at once."""
        self._nccl.groupStart()

    def group_end(self) -> None:
        """Carry them out."""
        self._nccl.groupEnd()

    def allocate(self, num_bytes: int) -> int:
        """Refuse."""
        raise UsageError("CuPy's binding of NCCL makes no windows: use nccl4py, or --memory ipc")

    def free(self, address: int) -> None:
        """Nothing was allocated."""


class CupyLink:
    """A communicator of CuPy."""

    def __init__(self, library: CupyNccl, made: Any, world_size: int) -> None:  # noqa: ANN401
        self._library = library
        self._made = made
        self._world_size = world_size

    def send(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Send bytes."""
        self._made.send(address, num_bytes, UINT8, peer, stream)

    def recv(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Receive bytes."""
        self._made.recv(address, num_bytes, UINT8, peer, stream)

    def alltoall(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Exchange blocks by sends and receives, as NCCL's own kernels do."""
        self._library.group_start()
        try:
            for peer in range(self._world_size):
                self.send(send + peer * num_bytes, num_bytes, peer, stream)
                self.recv(recv + peer * num_bytes, num_bytes, peer, stream)
        finally:
            self._library.group_end()

    def allgather(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Gather blocks of so many bytes."""
        self._made.allGather(send, recv, num_bytes, UINT8, stream)

    def reduce_scatter(self, send: int, recv: int, count: int, dtype: int, stream: int) -> None:
        """Sum blocks of so many elements."""
        self._made.reduceScatter(send, recv, count, dtype, SUM, stream)

    def register(self, address: int, num_bytes: int) -> list[int] | None:
        """Make no window."""
        return None

    def unregister(self, address: int) -> None:
        """Nothing was registered."""

    def copies(self) -> str | None:
        """Return why copy engines cannot carry out its collectives."""
        return "CuPy's binding of NCCL makes no windows"

    def error(self) -> str | None:
        """Return what has failed in the background."""
        try:
            self._made.check_async_error()
        except RuntimeError as error:
            return f"{nccl_words(int(getattr(error, 'status', 0)))} ({error})"
        return None

    def abort(self) -> None:
        """End all work that goes on, and the communicator."""
        self._made.abort()

    def close(self) -> None:
        """Free the communicator."""
        self._made.destroy()
