"""NCCL's communicators of a world, kept from case to case: they take seconds to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.cuda.nccl import Communicators
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks


class KeptNccl:
    """The communicators of a world, made when they are first asked for."""

    def __init__(self, ranks: Ranks, limit_s: float) -> None:
        """Make nothing yet.

        Args:
            ranks: the world.
            limit_s: longest that a call or the work that it began may take.
        """
        self._ranks = ranks
        self._limit_s = limit_s
        self._made: Communicators | None = None

    def get(self) -> Communicators:
        """Return them, made anew where some rank's have failed; collective.

        Raises:
            RuntimeFailure: NCCL is missing or fails.
            TimeoutFailure: it does not come to an end.
        """
        made = self._made
        if made is not None and any(together(self._ranks, lambda: made.is_aborted)):
            made.abort()
            self._made = None
        if self._made is None:
            self._made = Communicators(self._ranks, limit_s=self._limit_s)
        return self._made

    def check(self) -> None:
        """Look for errors of work that goes on, if there are any communicators.

        Raises:
            RuntimeFailure: there is one.
        """
        if self._made is not None:
            self._made.check()

    def abort(self) -> None:
        """End all work that goes on, if there are any."""
        if self._made is not None:
            self._made.abort()

    def close(self) -> None:
        """Free them; collective."""
        made, self._made = self._made, None
        if made is None:
            return
        if any(together(self._ranks, lambda: made.is_aborted)):
            made.abort()
        else:
            made.close()
