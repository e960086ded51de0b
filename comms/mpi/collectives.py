"""MPI as a library of collectives: on NumPy's arrays, and on CuPy's where MPI takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from comms.collectives import Buffer, HostArray, Rows, RowSplits, check_bounds
from comms.errors import RuntimeFailure

if TYPE_CHECKING:
    from mpi4py.MPI import Datatype, Intracomm

#: MPI counts rows and not bytes in these, and so does its 32-bit integer.
_MOST_ROWS = 2**31 - 1


class Memory(Protocol):
    """How the host reaches the buffers of a device."""

    def settle(self) -> None:
        """Wait until everything before has ended: MPI knows no streams."""

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Begin to copy buffers to the host."""

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last `fetch`."""

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer."""

    def close(self) -> None:
        """Free what the host keeps for it."""


class HostMemory:
    """Arrays of NumPy: what kernels and MPI have left is there when their calls return."""

    def __init__(self) -> None:
        self._fetched: list[HostArray] = []

    def settle(self) -> None:
        """Wait for nothing."""

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""
        target[:] = 0

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Copy buffers."""
        self._fetched = [source.copy() for source in sources]

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last `fetch`."""
        return self._fetched

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer."""
        target[: len(values)] = values

    def close(self) -> None:
        """Free nothing."""


class MpiCollectives:
    """Collectives of MPI; every call returns when this rank's part is done."""

    def __init__(self, comm: Intracomm, memory: Memory) -> None:
        """Work on a communicator of the world that nobody else uses.

        Args:
            comm: the communicator.
            memory: of the device whose buffers are given.
        """
        self._comm = comm
        self._memory = memory

    def exchange(self, rows: Sequence[Rows], splits: RowSplits) -> None:
        """Exchange rows by `MPI_Alltoallv`."""
        check_bounds(rows, splits)
        self._memory.settle()
        sent = (_narrow(splits.send_counts), _narrow(splits.send_begins))
        received = (_narrow(splits.recv_counts), _narrow(splits.recv_begins))
        for source, target, row_bytes in rows:
            with _row(row_bytes) as row:
                self._comm.Alltoallv([source, sent, row], [target, received, row])

    def exchange_equal(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Exchange equal splits by `MPI_Alltoall`."""
        self._memory.settle()
        for source, target, row_bytes in rows:
            with _row(row_bytes) as row:
                self._comm.Alltoall([source, num_rows, row], [target, num_rows, row])

    def gather(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Gather rows by `MPI_Allgather`."""
        self._memory.settle()
        for source, target, row_bytes in rows:
            with _row(row_bytes) as row:
                self._comm.Allgather([source, num_rows, row], [target, num_rows, row])

    def sum_scatter(self, rows: Rows, num_rows: int) -> None:
        """Refuse: MPI has no BF16."""
        raise RuntimeFailure("MPI has no type for BF16: use mpi/allgather, which adds rows itself")

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""
        self._memory.clear(target)

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Begin to copy buffers to the host."""
        self._memory.fetch(sources)

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last `fetch`."""
        return self._memory.fetched()

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer."""
        self._memory.write(target, values)

    def close(self) -> None:
        """Free what the host keeps; the communicator stays."""
        self._memory.close()


def _narrow(counts: Any) -> Any:  # noqa: ANN401
    """Return counts of rows as MPI takes them.

    Raises:
        RuntimeFailure: they are too many.
    """
    if counts.max(initial=0) > _MOST_ROWS:
        raise RuntimeFailure(
            f"MPI counts at most {_MOST_ROWS} rows, got {counts.max()}: use fewer tokens"
        )
    return counts.astype(np.int32)


@contextmanager
def _row(row_bytes: int) -> Iterator[Datatype]:
    """Give MPI's type of a row."""
    from mpi4py import MPI

    row = MPI.BYTE.Create_contiguous(row_bytes).Commit()
    try:
        yield row
    finally:
        row.Free()
