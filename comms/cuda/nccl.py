"""NCCL among the ranks of a world: one communicator for each budget of CTAs, made when asked for.

Sends and receives take no budget of their own, only communicators do. Addresses are of this rank's
GPU, streams are handles of CUDA.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

from comms.cuda.communicator import Communicator, Element, Part
from comms.cuda.errors import explained, version
from comms.cuda.limits import within
from comms.cuda.nccl_library import Budget, Library, Link, nccl_version, words_of
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, UsageError
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

__all__ = ["Binding", "Budget", "Communicator", "Communicators", "Element", "Part", "load"]

#: Python packages that call NCCL, by name.
Binding = Literal["nccl4py", "cupy"]

#: Most that NCCL's documentation lets a communicator have.
MAX_CTAS = 32
#: Variables that set CTAs whatever a communicator is told.
_OVERRIDES = (
    "NCCL_MIN_CTAS",
    "NCCL_MAX_CTAS",
    "NCCL_CTA_POLICY",
    "NCCL_MIN_NCHANNELS",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_P2P_NCHANNELS",
    "NCCL_MAX_P2P_NCHANNELS",
)
#: CUDA of the first driver whose copy engines NCCL uses.
_COPY_DRIVER = 12050
_NOT_READY = 600
_ABORT_LIMIT_S = 10.0
_LOOK_S = 0.0005
_WARM_BYTES = 16


class Communicators:
    """All communicators of this rank.

    Attributes:
        binding: package that calls NCCL.
        library: that package.
        limit_s: longest that a call or the work that it began may take.
        is_aborted: whether they have failed, and can do nothing more.
    """

    library: Library

    def __init__(
        self, ranks: Ranks, *, binding: Binding = "nccl4py", limit_s: float = 60.0
    ) -> None:
        """Load the library; collective.

        Args:
            ranks: the world, a GPU a rank, which is the current one of this thread.
            binding: package that calls NCCL.
            limit_s: longest that a call or the work that it began may take.

        Raises:
            RuntimeFailure: package or library are missing, or not the same on all ranks.
        """
        self.binding = binding
        self._ranks = ranks
        self.limit_s = limit_s
        self._made: dict[Budget, tuple[Communicator, Link]] = {}
        self.is_aborted = False
        versions = together(ranks, self._load)
        if len(set(versions)) > 1:
            other = next(rank for rank, found in enumerate(versions) if found != versions[0])
            raise RuntimeFailure(
                f"rank 0 has NCCL {nccl_version(versions[0])} and rank {other} "
                f"{nccl_version(versions[other])}: install the same everywhere"
            )

    @property
    def version(self) -> int:
        """NCCL's version, for example 23203 for 2.32.3."""
        return self.library.version

    def of(self, budget: Budget) -> Communicator:
        """Return the communicator of a budget; collective the first time.

        Connects every two ranks, so that no later call has to.

        Raises:
            UsageError: the binding or the library cannot keep to this budget.
            RuntimeFailure: NCCL failed, on this rank or on another.
            TimeoutFailure: NCCL did not come to an end.
        """
        assert not self.is_aborted, "the communicators are aborted"
        if budget in self._made:
            return self._made[budget][0]
        together(self._ranks, partial(self._refuse, budget))
        (name, *_) = together(self._ranks, self._name)
        try:
            together(self._ranks, partial(self._connect, name, budget))
            if budget != "zero":
                together(self._ranks, partial(self._warm, budget))
        except EpbenchError:
            # Others may have made theirs: none is kept.
            if budget in self._made:
                _abort(self._made.pop(budget)[1])
            raise
        return self._made[budget][0]

    def wait(self, stream: int, what: str) -> None:
        """Wait until a stream is done; looks for errors meanwhile.

        Raises:
            RuntimeFailure: NCCL or a kernel failed; the communicators are aborted.
            TimeoutFailure: the time limit has passed; the communicators are aborted.
        """
        from cupy.cuda import runtime

        deadline = time.monotonic() + self.limit_s
        try:
            while (status := runtime.streamQuery(stream)) == _NOT_READY:
                self.check()
                if time.monotonic() > deadline:
                    raise TimeoutFailure(
                        f"{what} has not ended within {self.limit_s:g} s on rank "
                        f"{self._ranks.rank}: another rank has not come to it, or the network does "
                        "not work (NCCL_DEBUG=INFO tells)"
                    )
                time.sleep(_LOOK_S)
            if status:
                with explained(what):
                    raise runtime.CUDARuntimeError(status)
            self.check()
        except EpbenchError:
            self.abort()
            raise

    def check(self) -> None:
        """Look for errors of work that goes on.

        Raises:
            RuntimeFailure: there is one.
        """
        for communicator, link in self._made.values():
            if why := link.error():
                raise RuntimeFailure(
                    f"NCCL failed on rank {self._ranks.rank} ({words_of(communicator.budget)}): "
                    f"{why}"
                )

    def abort(self) -> None:
        """End all work that goes on; the communicators cannot be used any more."""
        if self.is_aborted:
            return
        self.is_aborted = True
        links = [link for _, link in self._made.values()]
        self._made.clear()
        for link in links:
            _abort(link)

    def close(self) -> None:
        """Free the communicators; collective, once is enough.

        Raises:
            RuntimeFailure: NCCL failed.
            TimeoutFailure: NCCL did not come to an end.
        """
        links = [link for _, link in self._made.values()]
        self._made.clear()
        for link in links:
            with explained("NCCL cannot be ended"):
                within(self.limit_s, "NCCL's end", link.close)

    def _load(self) -> int:
        self.library = load(self.binding)
        return self.library.version

    def _refuse(self, budget: Budget) -> None:
        sets = [name for name in _OVERRIDES if budget is not None and name in os.environ]
        if sets:
            raise UsageError(
                f"{sets[0]}={os.environ[sets[0]]} sets NCCL's CTAs, so that it cannot keep to "
                f"{words_of(budget)}: unset {', '.join(sets)}"
            )
        if isinstance(budget, int) and not 1 <= budget <= MAX_CTAS:
            raise UsageError(f"NCCL takes 1 to {MAX_CTAS} CTAs, not {budget}: use fewer SMs")
        if why := self.library.refuses(budget):
            raise UsageError(
                f"{why}, so that it cannot keep to {words_of(budget)}: use nccl4py, or the "
                "library's default"
            )

    def _name(self) -> bytes:
        with explained("NCCL cannot begin"):
            return self.library.unique_id() if self._ranks.rank == 0 else b""

    def _connect(self, name: bytes, budget: Budget) -> None:
        ranks = self._ranks
        doing = f"NCCL cannot start on rank {ranks.rank} ({words_of(budget)})"
        connect = partial(self.library.connect, name, ranks.world_size, ranks.rank, budget)
        with explained(doing):
            from cupy.cuda import runtime

            link = within(self.limit_s, f"NCCL's start on rank {ranks.rank}", connect)
            self._made[budget] = Communicator(self.library, link, budget), link
            why = link.copies() if budget == "zero" else None
            if budget == "zero" and runtime.driverGetVersion() < _COPY_DRIVER:
                why = f"the driver is of CUDA {version(runtime.driverGetVersion())}, not 12.5"
        if why is not None:
            raise UsageError(f"NCCL cannot use copy engines here: {why}")

    def _warm(self, budget: Budget) -> None:
        """Exchange a few bytes with all: NCCL connects two ranks at their first message."""
        from cupy.cuda import runtime

        rank, size = self._ranks.rank, self._ranks.world_size
        with explained(f"NCCL's first messages on rank {rank} ({words_of(budget)})"):
            stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
            memory = runtime.malloc(2 * size * _WARM_BYTES)
            recv = memory + size * _WARM_BYTES
            parts = [
                Part(i, memory + i * _WARM_BYTES, _WARM_BYTES, recv + i * _WARM_BYTES, _WARM_BYTES)
                for i in range(size)
            ]
            exchange = partial(self._made[budget][0].exchange, parts, stream)
            within(self.limit_s, f"NCCL's first exchange on rank {rank}", exchange)
            self.wait(stream, f"NCCL's first exchange on rank {rank}")
            runtime.free(memory)
            runtime.streamDestroy(stream)


def load(binding: Binding) -> Library:
    """Return a package that calls NCCL.

    Raises:
        RuntimeFailure: it or NCCL is missing.
    """
    if binding == "cupy":
        from comms.cuda.nccl_cupy import CupyNccl

        return CupyNccl()
    from comms.cuda.nccl_nccl4py import Nccl4py

    return Nccl4py()


def _abort(link: Link) -> None:
    # What led here is told; where NCCL cannot end either, the process does.
    with suppress(Exception):
        within(_ABORT_LIMIT_S, "NCCL's abort", link.abort)
