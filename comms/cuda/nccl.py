"""NCCL among the ranks of a world: one communicator for each budget of CTAs, made when asked for.

Sends and receives take no budget of their own, only communicators do. Addresses are of this rank's
card, streams are handles of CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

#: Python packages that call NCCL, by name.
Binding = Literal["nccl4py", "cupy"]
#: CTAs of a communicator's kernels, `None` for as many as NCCL wants, or `"zero"` for collectives
#: that copy engines carry out.
Budget = int | Literal["zero"] | None
#: What `reduce_scatter` adds.
Element = Literal["float32", "float16", "bfloat16"]


class Part(NamedTuple):
    """What a rank exchanges with one peer, itself included; nothing is sent where there are no bytes.

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

    Calls return when the work is on the stream, but for the first between two ranks, which may wait
    for the peer.

    Attributes:
        budget: CTAs.
    """

    budget: Budget

    def exchange(self, parts: Sequence[Part], stream: int) -> None:
        """Send to and receive from every peer in one group."""
        raise NotImplementedError

    def alltoall(self, send_addr: int, recv_addr: int, bytes_per_rank: int, stream: int) -> None:
        """Send the i-th block to rank i, and receive its block into the i-th."""
        raise NotImplementedError

    def allgather(self, send_addr: int, recv_addr: int, num_bytes: int, stream: int) -> None:
        """Receive every rank's bytes, in the order of ranks."""
        raise NotImplementedError

    def reduce_scatter(
        self, send_addr: int, recv_addr: int, num_elements: int, dtype: Element, stream: int
    ) -> None:
        """Receive the sum over ranks of this rank's block of so many elements."""
        raise NotImplementedError

    def register(self, address: int, num_bytes: int) -> None:
        """Make memory of `NcclWindows` a symmetric window of this communicator; collective.

        Copy engines serve only such memory.
        """
        raise NotImplementedError


class Communicators:
    """All communicators of this rank.

    Attributes:
        version: NCCL's, for example 23203 for 2.32.3.
    """

    version: int

    def __init__(self, ranks: Ranks, *, binding: Binding = "nccl4py", limit_s: float = 60.0) -> None:
        """Load the library; collective.

        Args:
            ranks: the world, a GPU a rank, which is the current device of this thread.
            binding: package that calls NCCL.
            limit_s: longest that a call or the work that it began may take.

        Raises:
            UsageError: the package or the library is not installed.
        """
        raise NotImplementedError

    def of(self, budget: Budget) -> Communicator:
        """Return the communicator of a budget; collective the first time.

        Raises:
            UsageError: the binding or the library cannot keep to this budget.
            RuntimeFailure: NCCL failed, on this rank or on another.
            TimeoutFailure: NCCL did not come to an end.
        """
        raise NotImplementedError

    def wait(self, stream: int, what: str) -> None:
        """Wait until a stream is done; looks for errors meanwhile.

        Raises:
            RuntimeFailure: NCCL or a kernel failed; the communicators are aborted.
            TimeoutFailure: the time limit has passed; the communicators are aborted.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Look for errors of work that goes on.

        Raises:
            RuntimeFailure: there is one.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """End all work that goes on; the communicators cannot be used any more."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the communicators; collective, once is enough."""
        raise NotImplementedError
