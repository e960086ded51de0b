"""Errors a user can meet; each ends in one sentence and a documented exit code."""


class EpbenchError(Exception):
    """An error whose message is one sentence for the user.

    Attributes:
        exit_code: process exit code, the same on every rank.
    """

    exit_code = 1


class UsageError(EpbenchError):
    """Bad flag, impossible shape, wrong launcher or unwritable output."""

    exit_code = 2


class RuntimeFailure(EpbenchError):
    """CUDA, NCCL or MPI failed, or the disk is full."""

    exit_code = 3


class TimeoutFailure(EpbenchError):
    """A wait reached its limit, a kernel deadlocked or a rank died."""

    exit_code = 4


class NothingRan(EpbenchError):
    """Every case was skipped."""

    exit_code = 5


class WrongResults(EpbenchError):
    """An output differs from the oracle."""

    exit_code = 7


class Interrupted(EpbenchError):
    """The user pressed Ctrl-C."""

    exit_code = 130


def error_of(exit_code: int, sentence: str) -> EpbenchError:
    """Return the error of an exit code, as another process has told it."""
    kinds = (UsageError, RuntimeFailure, TimeoutFailure, NothingRan, WrongResults, Interrupted)
    return next((kind for kind in kinds if kind.exit_code == exit_code), EpbenchError)(sentence)
