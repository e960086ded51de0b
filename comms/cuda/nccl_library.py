"""What the Python packages that call NCCL have in common; addresses and streams are numbers."""

from __future__ import annotations

from typing import Literal, Protocol

#: CTAs of a communicator's kernels, None for as many as NCCL wants, `"zero"` for collectives that
#: copy engines carry out.
Budget = int | Literal["zero"] | None
#: Types and the operation of `nccl.h`.
UINT8, FLOAT16, FLOAT32, BFLOAT16, SUM = 1, 6, 7, 9, 0


class Link(Protocol):
    """One communicator of NCCL on this rank."""

    def send(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Send bytes."""

    def recv(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Receive bytes."""

    def alltoall(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Exchange blocks of so many bytes."""

    def allgather(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Gather blocks of so many bytes."""

    def reduce_scatter(self, send: int, recv: int, count: int, dtype: int, stream: int) -> None:
        """Sum blocks of so many elements."""

    def register(self, address: int, num_bytes: int) -> list[int] | None:
        """Make memory a window; return each rank's address of it, 0 where it is not reachable.

        None where NCCL makes no window.
        """

    def unregister(self, address: int) -> None:
        """Undo it; local."""

    def copies(self) -> str | None:
        """Return why copy engines cannot carry out its collectives, None where they can."""

    def error(self) -> str | None:
        """Return what has failed in the background."""

    def abort(self) -> None:
        """End all work that goes on, and the communicator."""

    def close(self) -> None:
        """Free the communicator; collective on a node."""


class Library(Protocol):
    """A package that calls NCCL.

    Attributes:
        version: NCCL's, for example 23203.
    """

    version: int

    def unique_id(self) -> bytes:
        """Return a new name of a communicator."""

    def connect(self, name: bytes, world_size: int, rank: int, budget: Budget) -> Link:
        """Make a communicator; collective."""

    def refuses(self, budget: Budget) -> str | None:
        """Return why it cannot keep to a budget, None where it can."""

    def group_start(self) -> None:
        """Begin calls that are carried out at once."""

    def group_end(self) -> None:
        """Carry them out."""

    def allocate(self, num_bytes: int) -> int:
        """Return the address of memory that can be a window."""

    def free(self, address: int) -> None:
        """Free it."""


def nccl_version(number: int) -> str:
    """Return NCCL's version in words, for example 2.32.3 for 23203."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def words_of(budget: Budget) -> str:
    """Return a budget in words."""
    if budget == "zero":
        return "copy engines"
    return "as many CTAs as it wants" if budget is None else f"{budget} CTAs"
