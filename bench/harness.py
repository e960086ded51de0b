"""One harness for every kernel: allocate, run, check, time, in this order and with no exception.

The state of a case is fresh; dispatch, combine and the pair then run on it in turn, each with other
data and with its outputs poisoned first, so that the flags which one run leaves are met by the
next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import msgspec
import numpy as np

from bench.cases import CaseSpec, blank_case
from bench.records.record import Bytes, Case, Check, Gbs, Sim, Status
from bench.session import Ran, Session
from bench.traffic.bounds import (
    ByteTotals,
    HalfOp,
    PortBytes,
    ReadRequests,
    bound_us,
    byte_totals,
    port_bytes,
)
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, UsageError
from comms.sim.engine import PS_PER_US
from kernels.protocol import Op, Protocol, Route
from kernels.registry import find_protocol

Progress = Callable[[str, float], None]

_OPS: tuple[Op, ...] = ("dispatch", "combine", "pair")
#: A run seldom takes longer than this many times its bound; the progress bar assumes it.
_EXPECTED_OVER_BOUND = 1.3


def run_spec(spec: CaseSpec, on_progress: Progress) -> list[Case]:
    """Run one kernel at one point of the axes.

    Args:
        spec: what to run.
        on_progress: called with a short text and the share of the case that is done, 0 to 1.

    Returns:
        A row for each operation, also where it was refused or failed.

    Raises:
        UsageError: no kernel could run this.
    """
    protocol = find_protocol(spec.kernel, spec.variant)
    shape = spec.shape()
    cases: dict[Op, Case] = {}
    for op in _OPS:
        reason = protocol.refuses(shape, op, cross_rail=spec.fabric.cross_rail)
        if reason is not None:
            cases[op] = _blank(spec, protocol, op, "skipped", reason)
    accepted = [op for op in _OPS if op not in cases]
    if accepted:
        try:
            runner = _Runner(spec, protocol)
        except RuntimeFailure as error:
            cases |= {op: _blank(spec, protocol, op, "error", str(error)) for op in accepted}
        else:
            cases |= runner.run_all(accepted, on_progress)
    return [cases[op] for op in _OPS]


def _blank(spec: CaseSpec, protocol: Protocol, op: Op, status: Status, reason: str) -> Case:
    return blank_case(
        spec, op, status, reason=reason, impl="numba", granularity=protocol.granularity
    )


class _Runner:
    """Makes a row of each operation of one case."""

    def __init__(self, spec: CaseSpec, protocol: Protocol) -> None:
        self._spec = spec
        self._protocol = protocol
        self._session = Session(spec, protocol)

    def run_all(self, ops: Sequence[Op], on_progress: Progress) -> dict[Op, Case]:
        """Run operations in turn; after one that failed the others are not run."""
        cases: dict[Op, Case] = {}
        failed = self._run_first_dispatch(ops)
        for place, op in enumerate(ops):
            if failed:
                cases[op] = _blank(self._spec, self._protocol, op, "skipped", failed)
                continue

            def report(text: str, share: float, place: int = place, op: Op = op) -> None:
                on_progress(f"{op} {text}", (place + share) / len(ops))

            cases[op] = self._run_case(op, report)
            if cases[op].status in ("error", "timeout"):
                failed = f"not run, because {op} ended with: {cases[op].reason}"
        return cases

    def _run_first_dispatch(self, ops: Sequence[Op]) -> str | None:
        """Run the dispatch that a cached form builds on, or that would run once only."""
        if self._spec.form == "fresh" and "pair" in ops:
            return None
        try:
            self._session.run(["dispatch"], _ignore, form="fresh")
        except UsageError:
            raise
        except EpbenchError as error:
            return f"not run, because a first dispatch ended with: {error}"
        return None

    def _run_case(self, op: Op, on_progress: Progress) -> Case:
        halves: list[HalfOp] = ["dispatch", "combine"] if op == "pair" else [op]
        own = {half: self._ports(half, self._protocol) for half in halves}
        fabric = self._spec.fabric
        own_us = sum(bound_us(ports, fabric) for ports in own.values())

        def report(_: int, now_ps: int) -> None:
            now_us = now_ps / PS_PER_US
            on_progress(f"{now_us:.0f} us", min(now_us / (_EXPECTED_OVER_BOUND * own_us + 1), 1.0))

        begun = time.perf_counter()
        try:
            ran = self._session.run(halves, report)
        except UsageError:
            raise
        except EpbenchError as error:
            status: Status = "timeout" if isinstance(error, TimeoutFailure) else "error"
            return _blank(self._spec, self._protocol, op, status, str(error))
        wall_s = time.perf_counter() - begun
        start, end = ran.outcome.start_ps, ran.outcome.end_ps
        time_us = float((end[-1] - start[0]).max()) / PS_PER_US
        spread_us = float(np.ptp(end[-1])) / PS_PER_US
        best_us = sum(bound_us(self._ports(half, None), fabric) for half in halves)
        wrong = ran.check.num_wrong > 0
        blank = _blank(self._spec, self._protocol, op, "incorrect", ran.check.first or "wrong")
        return msgspec.structs.replace(
            blank,
            status="incorrect" if wrong else "passed",
            reason=blank.reason if wrong else None,
            time_us=time_us,
            samples_us=[time_us],
            skew_pct=100 * spread_us / time_us,
            bound_own_us=own_us,
            bound_best_us=best_us,
            efficiency=own_us / time_us if fabric.capped and own_us > 0 else None,
            phases_us=_phases_us(ran),
            bytes=self._totals(own),
            gbs=self._rates(own, time_us),
            check=Check(num_wrong=ran.check.num_wrong, num_checked=ran.check.num_checked),
            sim=Sim(events=ran.outcome.num_events, rows=ran.outcome.num_rows, wall_s=wall_s),
        )

    def _ports(self, op: HalfOp, protocol: Protocol | None) -> PortBytes:
        """Return the bytes that ports must move for a protocol, or by the best named routing."""
        plan, shape, fabric = self._session.plan, self._session.shape, self._spec.fabric
        if protocol is None:
            return port_bytes(plan, shape, route="rail", granularity="rank", op=op)
        route: Route = protocol.route
        if route == "pxn" and fabric.cross_rail == "spine":
            route = "one_hop"
        pull = ReadRequests.of(fabric) if protocol.pulls and op == "combine" else None
        return port_bytes(
            plan, shape, route=route, granularity=protocol.granularity, op=op, pull=pull
        )

    def _totals(self, own: dict[HalfOp, PortBytes]) -> Bytes:
        totals = ByteTotals(0, 0, 0, 0, 0)
        for op, ports in own.items():
            totals += byte_totals(
                self._session.plan,
                self._session.shape,
                ports,
                granularity=self._protocol.granularity,
                op=op,
            )
        return Bytes(**asdict(totals))

    def _rates(self, own: dict[HalfOp, PortBytes], time_us: float) -> Gbs:
        """Return the rates at the busiest ports: bytes of each link, logical bytes of a rank."""
        shape, copies = self._session.shape, self._session.plan.copies
        total = sum(list(own.values())[1:], start=next(iter(own.values())))
        rows = {"dispatch": shape.dispatch_row, "combine": shape.combine_row}
        row_bytes = sum(rows[op].logical_bytes for op in own)
        most_rows = max(
            int(copies.sum(axis=0).max(initial=0)), int(copies.sum(axis=1).max(initial=0))
        )
        per_us = 1 / (1000 * time_us)
        return Gbs(
            logical=most_rows * row_bytes * per_us,
            nvlink=max(int(total.nvlink_out.max()), int(total.nvlink_in.max())) * per_us,
            rdma=max(int(total.nic_out.max()), int(total.nic_in.max())) * per_us,
        )


def _ignore(_: int, __: int) -> None:
    """Report nothing."""


def _phases_us(ran: Ran) -> dict[str, float]:
    durations = (ran.outcome.end_ps - ran.outcome.start_ps).max(axis=1) / PS_PER_US
    return dict(zip(ran.phases, durations.tolist(), strict=True))
