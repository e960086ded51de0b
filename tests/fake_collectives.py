"""Stands in for NCCL on fake GPUs: collectives between threads, in the order of a stream."""

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fake_ranks import FakeComm
from fake_streams import put

from comms.collectives import Buffer, HostArray, Rows, RowSplits
from comms.cuda.stopwatch import settle
from comms.errors import RuntimeFailure
from kernels.floats import from_bf16, to_bf16


class FakeCollectives:
    """Collectives of one rank."""

    def __init__(self, comm: FakeComm, rank: int, stream: int) -> None:
        self._comm, self._rank, self._stream = comm, rank, stream
        self._fetched: list[HostArray] = []

    def exchange(self, rows: Sequence[Rows], splits: RowSplits) -> None:
        """Exchange rows."""
        for source, target, row_bytes in rows:
            self._later(lambda s=source, t=target, n=row_bytes: self._exchange(s, t, n, splits))

    def exchange_equal(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Exchange equal splits."""
        world = self._comm.size
        counts = np.full(world, num_rows, np.int64)
        begins = np.arange(world) * num_rows
        self.exchange(rows, RowSplits(begins, counts, begins, counts))

    def gather(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Gather rows."""
        world = self._comm.size
        counts = np.full(world, num_rows, np.int64)
        begins = np.arange(world) * num_rows
        self.exchange(rows, RowSplits(np.zeros(world, np.int64), counts, begins, counts))

    def sum_scatter(self, rows: Rows, num_rows: int) -> None:
        """Sum rows in the order of ranks, rounded after each."""
        source, target, row_bytes = rows

        def work() -> None:
            size = num_rows * row_bytes
            own = slice(self._rank * size, (self._rank + 1) * size)
            parts = [np.frombuffer(data, np.uint8)[own] for data in self._all(source)]
            values = [from_bf16(part.view(np.uint16)) for part in parts]
            total = values[0]
            for value in values[1:]:
                total = from_bf16(to_bf16(total + value))
            target[:size] = to_bf16(total).view(np.uint8)

        self._later(work)

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""
        self._later(lambda: target.fill(0))

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Copy buffers when all before has ended."""

        def work() -> None:
            self._fetched = [np.array(source) for source in sources]

        self._later(work)

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last fetch."""
        settle(self._stream, lambda: None)
        return self._fetched

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements."""
        copy = values.copy()

        def work() -> None:
            target[: len(copy)] = copy

        self._later(work)

    def _all(self, source: Buffer) -> list[bytes]:
        return self._comm.allgather(source.tobytes())

    def _exchange(self, source: Any, target: Any, row_bytes: int, splits: RowSplits) -> None:  # noqa: ANN401
        mine = (source.tobytes(), splits.send_begins.tolist(), splits.send_counts.tolist())
        for peer, (data, begins, counts) in enumerate(self._comm.allgather(mine)):
            assert counts[self._rank] == splits.recv_counts[peer], "messages do not fit"
            at = int(splits.recv_begins[peer]) * row_bytes
            begin, size = begins[self._rank] * row_bytes, counts[self._rank] * row_bytes
            target[at : at + size] = np.frombuffer(data, np.uint8)[begin : begin + size]

    def _later(self, work: Callable[[], object]) -> None:
        def done() -> bool:
            work()
            return True

        put(self._stream, done)


class FakeCommunicators:
    """All communicators of one rank, as far as ranks of several hosts meet by them.

    Attributes:
        meetings: (stream, when) of each meeting, in nanoseconds: its begin and its end.
        failure: what NCCL finds on its own threads, if it does.
        is_aborted: whether it was ended.
    """

    limit_s = 20.0

    def __init__(self, comm: FakeComm) -> None:
        self._comm = comm
        self.meetings: list[tuple[int, int]] = []
        self.failure: str | None = None
        self.is_aborted = False

    def of(self, budget: object) -> "FakeCommunicators":
        """Return the communicator of a budget."""
        return self

    def allgather(self, send_addr: int, recv_addr: int, num_bytes: int, stream: int) -> None:
        """Gather bytes when all before has ended, here and on the other ranks."""

        def work() -> bool:
            begun = time.monotonic_ns()
            found = b"".join(self._comm.allgather(ctypes.string_at(send_addr, num_bytes)))
            ctypes.memmove(recv_addr, found, len(found))
            self.meetings.append((begun, time.monotonic_ns()))
            return True

        put(stream, work)

    def wait(self, stream: int, what: str) -> None:
        """Wait until a stream is done."""
        settle(stream, lambda: None)

    def check(self) -> None:
        """Look for a failure."""
        if self.failure is not None:
            raise RuntimeFailure(self.failure)

    def abort(self) -> None:
        """End all, but for what the fakes' streams do: it ends by itself."""
        self.is_aborted = True

    def close(self) -> None:
        """Free nothing."""
