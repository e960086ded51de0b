"""What a rank tells of kernels that ended early, here or because of another rank."""

from typing import Any

from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure


class ProgramFailed(EpbenchError):
    """A program ended early on this rank.

    Attributes:
        is_timeout: whether a wait reached its limit.
        is_cause: False where another rank's failure ended it.
        waits: where this rank's warps were and what they waited for, as far as it is known.
    """

    def __init__(
        self, sentence: str, waits: list[tuple[str, str]], *, is_timeout: bool, is_cause: bool
    ) -> None:
        super().__init__(sentence)
        self.waits = waits
        self.is_timeout = is_timeout
        self.is_cause = is_cause
        self.exit_code = (TimeoutFailure if is_timeout else EpbenchError).exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return _program_failed, (str(self), self.waits, self.is_timeout, self.is_cause)


def _program_failed(
    sentence: str, waits: list[tuple[str, str]], is_timeout: bool, is_cause: bool
) -> ProgramFailed:
    return ProgramFailed(sentence, waits, is_timeout=is_timeout, is_cause=is_cause)


class DoesNotFit(RuntimeFailure):
    """A device cannot run a kernel as it is asked to; other settings may fit."""
