"""NCCL as a library of collectives, on the stream of the kernels before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comms.collectives import Buffer, HostArray, Rows, RowSplits, check_bounds
from comms.cuda.communicator import Part
from comms.cuda.errors import explained
from comms.cuda.streams import StreamMemory, address_of

if TYPE_CHECKING:
    from comms.cuda.communicator import Communicator

_BF16_BYTES = 2


class NcclCollectives:
    """Collectives of one communicator. What they raise names the call that failed."""

    def __init__(self, communicator: Communicator, memory: StreamMemory, rank: int) -> None:
        """Work in the order of the memory's stream.

        Args:
            communicator: of the world.
            memory: of this rank's GPU.
            rank: this one.
        """
        self._communicator = communicator
        self._memory = memory
        self._rank = rank

    def exchange(self, rows: Sequence[Rows], splits: RowSplits) -> None:
        """Exchange rows by one group of sends and receives; copy those of the own rank.

        Messages without rows are left out on both sides, which know them.
        """
        check_bounds(rows, splits)
        parts = []
        own: list[tuple[int, int, int]] = []
        messages = list(enumerate(zip(*(column.tolist() for column in splits), strict=True)))
        # Ranks begin with different peers.
        messages = messages[self._rank :] + messages[: self._rank]
        for source, target, row_bytes in rows:
            from_addr, into_addr = address_of(source), address_of(target)
            for peer, (send_begin, send_count, recv_begin, recv_count) in messages:
                send_addr = from_addr + send_begin * row_bytes
                recv_addr = into_addr + recv_begin * row_bytes
                if peer == self._rank:
                    assert send_count == recv_count, f"{send_count=}, {recv_count=}"
                    own.append((recv_addr, send_addr, send_count * row_bytes))
                elif send_count or recv_count:
                    sent, received = send_count * row_bytes, recv_count * row_bytes
                    parts.append(Part(peer, send_addr, sent, recv_addr, received))
        if parts:
            with explained("NCCL's send and receive"):
                self._communicator.exchange(parts, self._memory.stream)
        for recv_addr, send_addr, num_bytes in own:
            if num_bytes:
                self._memory.copy(recv_addr, send_addr, num_bytes)

    def exchange_equal(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Exchange equal splits by ncclAlltoAll."""
        with explained("ncclAlltoAll"):
            for source, target, row_bytes in rows:
                if num_rows:
                    self._communicator.alltoall(
                        address_of(source),
                        address_of(target),
                        num_rows * row_bytes,
                        self._memory.stream,
                    )

    def gather(self, rows: Sequence[Rows], num_rows: int) -> None:
        """Gather rows by ncclAllGather."""
        with explained("ncclAllGather"):
            for source, target, row_bytes in rows:
                if num_rows:
                    self._communicator.allgather(
                        address_of(source),
                        address_of(target),
                        num_rows * row_bytes,
                        self._memory.stream,
                    )

    def sum_scatter(self, rows: Rows, num_rows: int) -> None:
        """Sum rows by ncclReduceScatter in BF16."""
        source, target, row_bytes = rows
        with explained("ncclReduceScatter"):
            if num_rows:
                self._communicator.reduce_scatter(
                    address_of(source),
                    address_of(target),
                    num_rows * row_bytes // _BF16_BYTES,
                    "bfloat16",
                    self._memory.stream,
                )

    def clear(self, target: Buffer) -> None:
        """Set a buffer to zero."""
        self._memory.clear(target)

    def fetch(self, sources: Sequence[Buffer]) -> None:
        """Begin to copy buffers to the host, in the order of the stream."""
        self._memory.fetch(sources)

    def fetched(self) -> list[HostArray]:
        """Return the copies of the last `fetch` when they are done."""
        return self._memory.fetched()

    def write(self, target: Buffer, values: HostArray) -> None:
        """Set the first elements of a buffer, in the order of the stream."""
        self._memory.write(target, values)

    def close(self) -> None:
        """Free what the host keeps; the communicator stays."""
        self._memory.close()
