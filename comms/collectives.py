"""What a library does for all ranks together: it moves rows, one call of every rank in its turn.

Buffers are flat arrays of the device: NumPy's, or CuPy's whose memory the host does not read. Calls
that move rows need not have ended when they return; what follows, `fetch` and kernels too, sees
what they have left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

#: A flat array of a device.
Buffer = Any
Int64 = npt.NDArray[np.int64]
HostArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The library that a protocol calls, and what it may take.

    Attributes:
        name: `"own"` for the device's (NCCL on `cuda`, MPI on `cpu`), `"mpi"` for MPI on each.
        max_ctas: most CTAs of a call, each on an SM; None for as many as the library chooses.
        zero_ctas: whether copy engines move what they can, and SMs nothing of it.
    """

    name: Literal["own", "mpi"] = "own"
    max_ctas: int | None = None
    zero_ctas: bool = False

    @classmethod
    def within(cls, num_sms: int) -> "Wanted":
        """Return the own library within a budget of SMs.

        NCCL rounds the channels of sends and receives up to a power of two (its src/graph/paths.cc)
        and takes no more than 32 CTAs, so it is asked for the power of two that the budget holds.
        """
        return cls(max_ctas=min(1 << (num_sms.bit_length() - 1), 32))


class Rows(NamedTuple):
    """Rows of one size that go from a buffer of each rank to another of each.

    Attributes:
        source: uint8, where a rank's rows are.
        target: uint8, where those that it gets go.
        row_bytes: bytes of a row.
    """

    source: Buffer
    target: Buffer
    row_bytes: int


class RowSplits(NamedTuple):
    """Which rows of its buffers a rank sends to, and gets from, each other.

    Attributes:
        send_begins: first row in `source` for each rank, int64 `(world_size,)`.
        send_counts: rows for each rank; like the others int64 `(world_size,)`.
        recv_begins: where in `target` the rows of each rank go.
        recv_counts: rows from each rank, as many as it sends.
    """

    send_begins: Int64
    send_counts: Int64
    recv_begins: Int64
    recv_counts: Int64

    def back(self) -> "RowSplits":
        """Return the splits of rows that go back where those of these have come from."""
        return RowSplits(self.recv_begins, self.recv_counts, self.send_begins, self.send_counts)


class Collectives(Protocol):
    """A library's communicator of the world, as host launches use it."""

    def exchange(self, rows: Sequence[Rows], splits: RowSplits) -> None:
        """Send rows to each rank and receive those of each: all-to-all-v, the own ones copied."""

    def exchange_equal(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Exchange `num_rows` rows between every two ranks, in the order of ranks: all-to-all."""

    def gather(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Give every rank the first `num_rows` rows of each, in the order of ranks: all-gather."""

    def sum_scatter(self, rows: Rows, num_rows: int) -> None:
        """Give rank r the sum over ranks of rows r * num_rows and on: BF16, by reduce-scatter.

        In what order, and rounded how often, is the library's own choice.
        """

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Begin to copy buffers to the host, as all before has left them."""

    def fetched(self) -> list[HostArray]:
        """Wait for the copies of the last `fetch`, and not for what came after it."""

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer to values of its type, before what follows."""


def starts(counts: Int64) -> Int64:
    """Return where the rows of each rank begin if they follow each other."""
    return np.cumsum(counts) - counts


def check_bounds(rows: Sequence[Rows], splits: RowSplits) -> None:
    """Refuse splits that lie outside of a buffer, which a library would write past.

    Raises:
        AssertionError: they do.
    """
    most_sent = _end(splits.send_begins, splits.send_counts)
    most_got = _end(splits.recv_begins, splits.recv_counts)
    for source, target, row_bytes in rows:
        assert most_sent * row_bytes <= source.nbytes, (
            f"{most_sent=}, {row_bytes=}, {source.nbytes=}"
        )
        assert most_got * row_bytes <= target.nbytes, f"{most_got=}, {row_bytes=}, {target.nbytes=}"


def _end(begins: Int64, counts: Int64) -> int:
    # Plain integers: this is between two launches, and arrays of a few elements are slower.
    pairs = zip(begins.tolist(), counts.tolist(), strict=True)
    return max((begin + count for begin, count in pairs if count), default=0)
