"""Steps that all ranks take together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from comms.errors import EpbenchError, error_of

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

T = TypeVar("T")


def together(ranks: Ranks, step: Callable[[], T]) -> list[T]:
    """Take a step on every rank and return what each rank's has returned; collective.

    A failure on one rank is raised on all, so that none waits in the next collective call.

    Args:
        ranks: the world.
        step: must not itself be collective over MPI; what it returns is pickled.

    Raises:
        EpbenchError: the step failed somewhere; of several failures the first rank's, in the same
            words on every rank.
    """
    found: T | None = None
    told: tuple[int, str] | None = None
    cause: BaseException | None = None
    try:
        found = step()
    except EpbenchError as error:
        told, cause = (error.exit_code, str(error)), error
    except Exception as error:  # noqa: BLE001
        sentence = f"internal error on rank {ranks.rank}: {type(error).__name__}: {error}"
        told, cause = (EpbenchError.exit_code, sentence), error
    results: list[tuple[tuple[int, str] | None, T]] = ranks.comm.allgather((told, found))
    for failure, _ in results:
        if failure is not None:
            raise error_of(*failure) from cause
    return [value for _, value in results]
