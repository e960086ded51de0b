"""Cases on devices with real clocks and a process per rank: check, agree, time, check again.

Every rank of the case's world makes the same calls. Ranks meet before each iteration, on the device
and outside its time; an iteration's time is the slowest rank's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bench.cases import CaseSpec
from bench.check import CheckResult
from bench.observed import Observed, Progress
from bench.session import Inputs, Session
from bench.timing import Timing
from bench.traffic.account import Account
from bench.traffic.bounds import HalfOp
from comms.cpu.machine import ProgramFailed
from comms.errors import EpbenchError, TimeoutFailure, error_of
from comms.mpi.control import Control
from comms.mpi.ranks import Ranks
from comms.waits import describe_waits
from kernels.devices.base import World
from kernels.devices.cpu import CpuDevice, Limits, Timed
from kernels.protocol import Form, Protocol

_NS_PER_US = 1000
#: The first rank compiles while the others wait: seconds a kernel, more on a busy machine.
_COMPILE_S = 180.0
#: What a rank's host may take to make the world's rows, or to check its own.
_HOST_S = 120.0


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that run cases together, and what they agreed on before.

    Attributes:
        ranks: the world of the case.
        control: the page of the whole job.
        timing: how often to run what.
        watch: called before anything that may take long, with what it is and with the seconds that
            it may take whatever the time limit is.
    """

    ranks: Ranks
    control: Control
    timing: Timing
    watch: Callable[[str, float], None]


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
        timed, check = self._checked_run(halves)
        if check.num_wrong or timing.num_iters == 0:
            return self._summary([timed], check, [])
        if timing.check == "each":
            return self._observe_each(halves, check, on_progress)
        times: list[Timed] = []
        copies_ns: list[int] = []
        # By one thread of each process: nothing to hold several SMs against.
        copies = self._session.shape.num_sms == 1
        num_bytes = self.account.received_bytes(self._team.ranks.rank, halves)
        total = timing.num_warmup + timing.num_iters
        with self._agreeing():
            self._watch("inputs", halves, least_s=_HOST_S)
            inputs = self._session.load(halves, self._form)
            with _no_collection():
                for iteration in range(total):
                    self._watch(f"iteration {iteration}", halves)
                    copied_ns = self._device.copy_plain(num_bytes) if copies else 0
                    if iteration == total - 1:
                        # The last outputs are checked: they must not be those of the one before.
                        self._session.poison(inputs.outputs)
                    timed = self._device.run(list(halves), self._form)
                    if iteration >= timing.num_warmup:
                        times.append(timed)
                        copies_ns.extend([copied_ns] if copies else [])
                    on_progress("timing", iteration / total)
        check += self._check(halves, inputs, {})
        return self._summary(times, check, copies_ns)

    def _observe_each(
        self, halves: Sequence[HalfOp], check: CheckResult, on_progress: Progress
    ) -> Observed:
        """Give every iteration new data and check what it leaves."""
        num_iters = self._team.timing.num_iters
        times = []
        for iteration in range(num_iters):
            timed, result = self._checked_run(halves)
            check += result
            times.append(timed)
            on_progress("timing and checking", iteration / num_iters)
        return self._summary(times, check, [])

    def _checked_run(self, halves: Sequence[HalfOp]) -> tuple[Timed, CheckResult]:
        """Run on new data and return what all ranks found."""
        with self._agreeing():
            self._watch("inputs", halves, least_s=_HOST_S)
            inputs = self._session.load(halves, self._form)
            self._watch("checked run", halves)
            timed = self._device.run(list(halves), self._form)
            # Outputs count as they stand now: what a peer still writes comes too late.
            at_end = self._session.outputs(self._team.ranks.rank, inputs.outputs)
            at_end = {name: rows.copy() for name, rows in at_end.items()}
        return timed, self._check(halves, inputs, at_end)

    def _check(
        self,
        halves: Sequence[HalfOp],
        inputs: Inputs,
        at_end: dict[str, npt.NDArray[np.uint8]],
    ) -> CheckResult:
        """Return the check of all ranks: outputs against the oracle, and what came after them."""
        ranks = self._team.ranks
        self._watch("check", halves, least_s=_HOST_S)
        ranks.comm.Barrier()
        late = np.zeros(ranks.world_size, np.int64)
        for name, now in self._session.outputs(ranks.rank, list(at_end)).items():
            late[ranks.rank] += np.count_nonzero((now != at_end[name]).any(axis=1))
        own = self._session.check(inputs, late)
        self._watch("agreement on the check", halves, least_s=_HOST_S)
        return sum(ranks.comm.allgather(own), start=CheckResult())

    def _summary(
        self, times: Sequence[Timed], check: CheckResult, copies_ns: Sequence[int]
    ) -> Observed:
        """Reduce over ranks: each iteration by its slowest, a rank by its median iteration."""
        own_ns = np.array([timed.end_ns.max() - timed.begun_ns for timed in times])
        phases_ns = np.array([timed.end_ns - timed.start_ns for timed in times])
        gathered = self._team.ranks.comm.allgather((own_ns, phases_ns, np.array(copies_ns)))
        all_ns, all_phases_ns, all_copies_ns = (
            np.stack(part) / _NS_PER_US for part in zip(*gathered, strict=True)
        )
        rank_us = np.median(all_ns, axis=1)
        samples_us = all_ns.max(axis=0)
        phases_us = np.median(all_phases_ns.max(axis=0), axis=0)
        return Observed(
            check=check,
            samples_us=samples_us.tolist(),
            phases_us=dict(zip(times[0].phases, phases_us.tolist(), strict=True)),
            skew_pct=100 * float(np.ptp(rank_us) / np.median(samples_us)),
            rank_us=rank_us.tolist(),
            memcpy_samples_us=all_copies_ns.max(axis=0).tolist() if copies_ns else [],
        )

    def close(self) -> None:
        """Free the windows; collective."""
        self._watch("release")
        self._device.close()

    def _open(self, protocol: Protocol, world: World) -> CpuDevice:
        limits = Limits(self._team.control.abort_address, self._team.timing.timeout_s)
        self._device = CpuDevice(protocol, world, self._team.ranks, limits)
        return self._device

    def _watch(self, what: str, halves: Sequence[HalfOp] = (), least_s: float = 0.0) -> None:
        op = "pair" if len(halves) > 1 else "".join(halves)
        self._team.watch(" ".join(filter(None, (self._label, op, what))), least_s)

    @contextmanager
    def _agreeing(self) -> Iterator[None]:
        """Let all ranks leave together, with one error if a kernel failed on any of them.

        Raises:
            TimeoutFailure: a kernel's wait reached its limit.
            UsageError: the kernel cannot be run like this.
            EpbenchError: a kernel or its library failed.
        """
        failure: EpbenchError | None = None
        try:
            yield
        except EpbenchError as error:
            failure = error
        ranks, control = self._team.ranks, self._team.control
        # A rank that is inside the library does not come: then this is what the ending tells.
        self._watch("agreement" if failure is None else f"agreement after: {failure}")
        failures = [one for one in ranks.comm.allgather(failure) if one is not None]
        if not failures:
            return
        # Every kernel has ended: the next case may wait again.
        if ranks.rank == 0:
            control.clear_abort()
        ranks.comm.Barrier()
        raise _one_error(failures)


def _one_error(failures: Sequence[EpbenchError]) -> EpbenchError:
    """Return the cause's error, with what the warps of all ranks waited for."""
    programs = [one for one in failures if isinstance(one, ProgramFailed)]
    others = [one for one in failures if not isinstance(one, ProgramFailed)]
    causes = [*others, *(one for one in programs if one.is_cause), *programs]
    if causes[0].exit_code != TimeoutFailure.exit_code:
        return error_of(causes[0].exit_code, str(causes[0]))
    waits = [wait for one in programs for wait in one.waits]
    return TimeoutFailure(describe_waits(str(causes[0]), waits) if waits else str(causes[0]))


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
