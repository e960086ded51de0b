"""One communicator of NCCL: what baselines call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from comms.cuda.nccl_library import BFLOAT16, FLOAT16, FLOAT32, Budget, Library, Link
from comms.errors import UsageError

#: What `reduce_scatter` adds.
Element = Literal["float32", "float16", "bfloat16"]
_ELEMENTS = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}


class Part(NamedTuple):
    """What a rank exchanges with one peer, which may be itself; no bytes make no message.

    Attributes:
        peer: rank.
        send_addr: first byte to send.
        send_bytes: how many.
        recv_addr: where the peer's bytes go.
        recv_bytes: how many.
    """

    peer: int
    send_addr: int
    send_bytes: int
    recv_addr: int
    recv_bytes: int


class Communicator:
    """NCCL with one budget. All ranks make the same calls in the same order.

    Calls return when the work is on the stream; NCCL itself fails as `NCCLError` of nccl4py or
    `NcclError` of CuPy, which `comms.cuda.errors.explained` tells in words.

    Attributes:
        budget: CTAs. NCCL rounds those of sends and receives up to a power of two.
    """

    def __init__(self, library: Library, link: Link, budget: Budget) -> None:
        self.budget = budget
        self._library = library
        self._link = link
        self._windows: dict[int, int] = {}

    def exchange(self, parts: Sequence[Part], stream: int) -> None:
        """Send to and receive from every peer in one group."""
        assert self.budget != "zero", "copy engines send no messages"
        link = self._link
        self._library.group_start()
        try:
            for peer, send_addr, send_bytes, recv_addr, recv_bytes in parts:
                if send_bytes:
                    link.send(send_addr, send_bytes, peer, stream)
                if recv_bytes:
                    link.recv(recv_addr, recv_bytes, peer, stream)
        finally:
            self._library.group_end()

    def alltoall(self, send_addr: int, recv_addr: int, bytes_per_rank: int, stream: int) -> None:
        """Send the i-th block to rank i, and receive its block into the i-th."""
        self._check_windows(send_addr, recv_addr)
        self._link.alltoall(send_addr, recv_addr, bytes_per_rank, stream)

    def allgather(self, send_addr: int, recv_addr: int, num_bytes: int, stream: int) -> None:
        """Receive every rank's bytes, in the order of ranks."""
        self._check_windows(send_addr, recv_addr)
        self._link.allgather(send_addr, recv_addr, num_bytes, stream)

    def reduce_scatter(
        self, send_addr: int, recv_addr: int, num_elements: int, dtype: Element, stream: int
    ) -> None:
        """Receive the sum over ranks of this rank's block of so many elements."""
        assert self.budget != "zero", "copy engines add nothing"
        self._link.reduce_scatter(send_addr, recv_addr, num_elements, _ELEMENTS[dtype], stream)

    def register(self, address: int, num_bytes: int) -> list[int] | None:
        """Make memory that this library allocated a symmetric window; collective.

        Returns:
            Each rank's window as this process addresses it, 0 where it does not; None where NCCL
            makes no windows.
        """
        bases = self._link.register(address, num_bytes)
        if bases is not None:
            self._windows[address] = num_bytes
        return bases

    def unregister(self, address: int) -> None:
        """Make memory no window any more; no rank may use it."""
        del self._windows[address]
        self._link.unregister(address)

    def _check_windows(self, *addresses: int) -> None:
        """Refuse memory from which NCCL would fall back to its kernels, without a word."""
        if self.budget != "zero":
            return
        for address in addresses:
            if not any(at <= address < at + size for at, size in self._windows.items()):
                raise UsageError(
                    "copy engines serve only windows that NCCL has allocated: use --memory nccl"
                )
