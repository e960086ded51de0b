"""Cases on devices with real clocks and a process per rank: check, agree, time, check again.

Every rank of the case's world makes the same calls. Ranks meet before each iteration, on the device
and outside its time; an iteration's time is the slowest rank's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.agreement import agreeing
from bench.cases import CaseSpec
from bench.check import CheckResult
from bench.observed import Observed, Progress
from bench.session import Inputs, Session
from bench.slowest import Iteration, summary
from bench.timing import Timing
from bench.traffic.account import Account
from bench.traffic.bounds import HalfOp
from comms.mpi.control import Control
from comms.mpi.ranks import Ranks
from kernels.devices.base import Limits, MeasuredDevice, World
from kernels.protocol import Form, Protocol

if TYPE_CHECKING:
    from comms.cuda.cards import Card
    from comms.cuda.kept_nccl import KeptNccl

#: The first rank compiles while the others wait: seconds a kernel, more on a busy machine.
_COMPILE_S = 180.0
#: What a rank's host may take to make the world's rows, or to check its own.
_HOST_S = 120.0


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that run cases together, and what they agreed on before.

    Attributes:
        ranks: the world of the case.
        control: the page of this host.
        timing: how often to run what.
        watch: called before anything that may take long, with what it is and with the seconds that
            it may take whatever the time limit is.
        card: this process's GPU, None where it has none.
        nccl: communicators of the ranks, None where they have no GPUs.
    """

    ranks: Ranks
    control: Control
    timing: Timing
    watch: Callable[[str, float], None]
    card: Card | None = None
    nccl: KeptNccl | None = None


class Measured:
    """A case on the ranks of a team."""

    def __init__(self, spec: CaseSpec, protocol: Protocol, team: Team) -> None:
        self._team = team
        self._form: Form = spec.form
        self._label = f"{spec.kernel}/{spec.variant}"
        self._watch("data, compilation and memory", least_s=_COMPILE_S)
        self._session = Session(spec, protocol, self._open)
        # A processor's loads send no requests that could be counted.
        moved = replace(protocol, pulls=False)
        self.account = Account(self._session.plan, self._session.shape, spec.fabric, moved)
        self._watch("begin")

    def first_dispatch(self) -> None:
        """Run the dispatch that later operations build on."""
        with self._agreeing():
            self._watch("first run", ["dispatch"])
            self._session.load(["dispatch"], "fresh")
            self._device.run(["dispatch"], "fresh")

    def observe(self, halves: Sequence[HalfOp], on_progress: Progress) -> Observed:
        """Check operations, time them if all ranks find them right, and check them again."""
        timing = self._team.timing
        on_progress("check", 0.0)
        first, check = self._checked_run(halves)
        if check.num_wrong or timing.num_iters == 0:
            return summary(self._team.ranks, [first], check)
        if timing.check == "each":
            return self._observe_each(halves, check, on_progress)
        iterations: list[Iteration] = []
        num_bytes = sum(self.account.received_bytes(rank, halves) for rank in self._device.ranks)
        total = timing.num_warmup + timing.num_iters
        with self._agreeing():
            self._watch("inputs", halves, least_s=_HOST_S)
            inputs = self._session.load(halves, self._form)
            with _no_collection():
                for iteration in range(total):
                    self._watch(f"iteration {iteration}", halves)
                    copy_ns = self._copy_plain(num_bytes)
                    if iteration == total - 1:
                        # The last outputs are checked: they must not be those of the one before.
                        self._session.poison(inputs.outputs)
                    timed = self._device.run(list(halves), self._form, is_timed=True)
                    if iteration >= timing.num_warmup:
                        iterations.append(Iteration(timed, copy_ns, self._device.clock()))
                    on_progress("timing", iteration / total)
        check += self._check(halves, inputs, {})
        return summary(self._team.ranks, iterations, check)

    def _observe_each(
        self, halves: Sequence[HalfOp], check: CheckResult, on_progress: Progress
    ) -> Observed:
        """Give every iteration new data and check what it leaves."""
        num_iters = self._team.timing.num_iters
        iterations = []
        for iteration in range(num_iters):
            seen, result = self._checked_run(halves)
            check += result
            iterations.append(seen)
            on_progress("timing and checking", iteration / num_iters)
        return summary(self._team.ranks, iterations, check)

    def _checked_run(self, halves: Sequence[HalfOp]) -> tuple[Iteration, CheckResult]:
        """Run on new data and return what all ranks found."""
        with self._agreeing():
            self._watch("inputs", halves, least_s=_HOST_S)
            inputs = self._session.load(halves, self._form)
            self._watch("checked run", halves)
            timed = self._device.run(list(halves), self._form)
            # Outputs count as they stand now: what a peer still writes comes too late.
            at_end = {
                (rank, name): rows.copy()
                for rank in self._device.ranks
                for name, rows in self._session.outputs(rank, inputs.outputs).items()
            }
        return Iteration(timed, clock=self._device.clock()), self._check(halves, inputs, at_end)

    def _check(
        self,
        halves: Sequence[HalfOp],
        inputs: Inputs,
        at_end: dict[tuple[int, str], npt.NDArray[np.uint8]],
    ) -> CheckResult:
        """Return the check of all ranks: outputs against the oracle, and what came after them."""
        ranks = self._team.ranks
        self._watch("check", halves, least_s=_HOST_S)
        ranks.comm.Barrier()
        late = np.zeros(self._session.shape.world_size, np.int64)
        for (rank, name), then in at_end.items():
            now = self._session.outputs(rank, [name])[name]
            late[rank] += np.count_nonzero((now != then).any(axis=1))
        own = self._session.check(inputs, late)
        self._watch("agreement on the check", halves, least_s=_HOST_S)
        return sum(ranks.comm.allgather(own), start=CheckResult())

    def _copy_plain(self, num_bytes: int) -> float | None:
        return self._device.copy_plain(num_bytes) if self._device.copies_plainly else None

    def close(self) -> None:
        """Free the windows; collective."""
        self._watch("release")
        self._device.close()

    def _open(self, protocol: Protocol, world: World) -> MeasuredDevice:
        team = self._team
        limits = Limits(team.control.abort_address, team.timing.timeout_s)
        self._device: MeasuredDevice
        if team.card is None or team.nccl is None:
            from kernels.devices.cpu import CpuDevice

            self._device = CpuDevice(protocol, world, team.ranks, limits)
        else:
            from kernels.devices.cuda import CudaDevice, Options

            timing = team.timing
            options = Options(
                team.card,
                limits,
                team.nccl,
                timing.memory,
                graph=timing.graph,
                profile=timing.profile,
            )
            self._device = CudaDevice(protocol, world, team.ranks, options)
        return self._device

    def _watch(self, what: str, halves: Sequence[HalfOp] = (), least_s: float = 0.0) -> None:
        op = "pair" if len(halves) > 1 else "".join(halves)
        self._team.watch(" ".join(filter(None, (self._label, op, what))), least_s)

    def _agreeing(self) -> AbstractContextManager[None]:
        """Let all ranks leave together, with one error if a kernel failed on any of them."""
        team = self._team
        return agreeing(team.ranks, team.control, self._watch, self._device.reset)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of what is timed."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
