"""A world of one process, which needs no MPI."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from comms.mpi.ranks import Ranks

T = TypeVar("T")


class AloneComm:
    """As much of a communicator as the harness uses, of one rank."""

    rank = 0
    size = 1

    def allgather(self, value: T) -> list[T]:
        """Return every rank's value."""
        return [value]

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value to the first."""
        return [value]

    def bcast(self, value: T) -> T:
        """Return the first rank's value."""
        return value

    def Barrier(self) -> None:  # noqa: N802
        """Wait for all."""

    def Dup(self) -> AloneComm:  # noqa: N802
        """Return a communicator of the same ranks."""
        return AloneComm()

    def Free(self) -> None:  # noqa: N802
        """Give back nothing."""


def alone() -> Ranks:
    """Return this process as the only one of its world."""
    return Ranks(
        comm=cast(Any, AloneComm()),
        rank=0,
        world_size=1,
        local_rank=0,
        local_size=1,
        host=0,
        num_hosts=1,
        library="",
    )
