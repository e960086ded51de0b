"""One error for all ranks: where a kernel fails on some of them, all leave with the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from comms.errors import EpbenchError, TimeoutFailure, error_of
from comms.failed import ProgramFailed
from comms.mpi.control import Control
from comms.mpi.ranks import Ranks
from comms.waits import describe_waits


@contextmanager
def agreeing(
    ranks: Ranks, control: Control, watch: Callable[[str], None], reset: Callable[[], None]
) -> Iterator[None]:
    """Let all ranks leave together, with one error if a kernel failed on any of them.

    Args:
        ranks: the world; all of them must come.
        control: the page of this host.
        watch: told what this rank waits for.
        reset: lets kernels of this rank run again; called when all have ended.

    Raises:
        TimeoutFailure: a kernel's wait reached its limit.
        UsageError: the kernel cannot be run like this.
        EpbenchError: a kernel or its library failed.
    """
    failure: EpbenchError | None = None
    generation = control.generation()
    try:
        yield
    except EpbenchError as error:
        failure = error
    # A rank that is inside the library does not come: then this is what the ending tells.
    watch("agreement" if failure is None else f"agreement after: {failure}")
    failures = [one for one in ranks.comm.allgather(failure) if one is not None]
    if not failures:
        return
    # Every kernel has ended: the next case may wait again.
    reset()
    if ranks.local_rank == 0:
        control.clear_abort(generation + 1)
    ranks.comm.Barrier()
    raise one_error(failures)


def one_error(failures: Sequence[EpbenchError]) -> EpbenchError:
    """Return the cause's error, with what the warps of all ranks waited for."""
    programs = [one for one in failures if isinstance(one, ProgramFailed)]
    others = [one for one in failures if not isinstance(one, ProgramFailed)]
    causes = [*others, *(one for one in programs if one.is_cause), *programs]
    if causes[0].exit_code != TimeoutFailure.exit_code:
        return error_of(causes[0].exit_code, str(causes[0]))
    waits = [wait for one in programs for wait in one.waits]
    return TimeoutFailure(describe_waits(str(causes[0]), waits) if waits else str(causes[0]))
