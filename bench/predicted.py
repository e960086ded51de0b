"""Cases on `sim`: one run in virtual time is check and time at once."""

import time
from collections.abc import Sequence

import numpy as np

from bench.cases import CaseSpec
from bench.observed import Observed, Progress
from bench.records.record import Sim
from bench.session import Session
from bench.traffic.account import Account
from bench.traffic.bounds import HalfOp
from comms.sim.engine import PS_PER_US
from comms.sim.timeline import Recorder
from kernels.devices.base import World
from kernels.devices.sim import SimDevice
from kernels.protocol import Protocol

#: A run seldom takes longer than this many times its bound; the progress bar assumes it.
_EXPECTED_OVER_BOUND = 1.3


class Predicted:
    """A case on the simulator."""

    def __init__(self, spec: CaseSpec, protocol: Protocol) -> None:
        self._form = spec.form
        self._session = Session(spec, protocol, self._open)
        self.account = Account(self._session.plan, self._session.shape, spec.fabric, protocol)

    def first_dispatch(self) -> None:
        """Run the dispatch that later operations build on."""
        self._session.load(["dispatch"], "fresh")
        self._device.run(["dispatch"], "fresh")

    def observe(
        self,
        halves: Sequence[HalfOp],
        on_progress: Progress,
        recorder: Recorder | None = None,
    ) -> Observed:
        """Run operations in order with no host between them and check what they leave."""
        bound_us = self.account.own_us(halves)

        def report(_: int, now_ps: int) -> None:
            now_us = now_ps / PS_PER_US
            share = now_us / (_EXPECTED_OVER_BOUND * bound_us + 1)
            on_progress(f"{now_us:.0f} us", min(share, 1.0))

        begun = time.perf_counter()
        inputs = self._session.load(halves, self._form)
        phases, outcome = self._device.run(list(halves), self._form, report, recorder)
        check = self._session.check(inputs, outcome.num_late)
        wall_s = time.perf_counter() - begun
        start, end = outcome.start_ps, outcome.end_ps
        time_us = float((end[-1] - start[0]).max()) / PS_PER_US
        durations = (end - start).max(axis=1) / PS_PER_US
        return Observed(
            check=check,
            samples_us=[time_us],
            phases_us=dict(zip(phases, durations.tolist(), strict=True)),
            skew_pct=100 * float(np.ptp(end[-1])) / PS_PER_US / time_us,
            rank_us=[],
            sim=Sim(events=outcome.num_events, rows=outcome.num_rows, wall_s=wall_s),
        )

    def close(self) -> None:
        """Give back nothing: memory goes with the object."""

    def _open(self, protocol: Protocol, world: World) -> SimDevice:
        self._device = SimDevice(protocol, world)
        return self._device
