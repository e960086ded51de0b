"""One harness for every kernel and device: allocate, run, check, time, in this order and with no
exception.

The state of a case is fresh; dispatch, combine and the pair then run on it in turn, each with other
data and with its outputs poisoned first, so that the flags which one run leaves are met by the
next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from bench.cases import CaseSpec, blank_case
from bench.observed import Progress, Runner
from bench.records.record import Case, Check, Op, Status
from bench.traffic.bounds import HalfOp
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, UsageError
from comms.failed import DoesNotFit
from kernels.devices import MAX_CUDA_TOPK
from kernels.protocol import Form, Protocol
from kernels.registry import find_protocol

if TYPE_CHECKING:
    from bench.measured import Team

_OPS: tuple[Op, ...] = ("dispatch", "combine", "pair")
_HALVES: tuple[Op, ...] = ("dispatch", "combine")
_PROFILED = "profiled as a part of the pair"


def run_spec(spec: CaseSpec, on_progress: Progress, team: Team | None = None) -> list[Case]:
    """Run one kernel at one point of the axes.

    Args:
        spec: what to run.
        on_progress: called with a short text and the share of the case that is done, 0 to 1.
        team: the ranks that run it together, for devices whose ranks are processes; each of them
            calls this and gets the same rows.

    Returns:
        A row for each operation, also where it was refused or failed.

    Raises:
        UsageError: no kernel could run this.
    """
    protocol = find_protocol(spec.kernel, spec.variant, spec.source, spec.impl)
    cases: dict[Op, Case] = {}
    for op in _OPS:
        reason = refusal_of(spec, protocol, op)
        if reason is not None:
            cases[op] = _blank(spec, protocol, op, "skipped", reason)
    if team is not None and team.timing.profile and "pair" not in cases:
        for op in _HALVES:
            cases.setdefault(op, _blank(spec, protocol, op, "skipped", _PROFILED))
    accepted = [op for op in _OPS if op not in cases]
    if accepted:
        try:
            runner = _open(spec, protocol, team)
        except RuntimeFailure as error:
            status: Status = "skipped" if isinstance(error, DoesNotFit) else "error"
            cases |= {op: _blank(spec, protocol, op, status, str(error)) for op in accepted}
        else:
            cases |= _run_all(spec, protocol, runner, accepted, on_progress)
            # Not after an exception: closing takes all ranks, and this one has left them.
            runner.close()
    return [cases[op] for op in _OPS]


def skipped_cases(spec: CaseSpec, reason: str) -> list[Case]:
    """Return the rows of a spec of which nothing was run."""
    protocol = find_protocol(spec.kernel, spec.variant, spec.source, spec.impl)
    return [_blank(spec, protocol, op, "skipped", reason) for op in _OPS]


def refusal_of(spec: CaseSpec, protocol: Protocol, op: Op) -> str | None:
    """Return why a protocol does not run an operation of a spec, or None."""
    if spec.device not in protocol.devices:
        return f"runs on device {' or '.join(protocol.devices)} only"
    if spec.device == "cuda" and spec.workload.num_topk > MAX_CUDA_TOPK:
        return (
            f"a token's selections have a lane each on device cuda, so top-k is at most "
            f"{MAX_CUDA_TOPK}, got {spec.workload.num_topk}"
        )
    return protocol.refuses(spec.shape(), op, cross_rail=spec.fabric.cross_rail)


def _open(spec: CaseSpec, protocol: Protocol, team: Team | None) -> Runner:
    if spec.device == "sim":
        from bench.predicted import Predicted

        return Predicted(spec, protocol)
    from bench.measured import Measured

    assert team is not None, f"device {spec.device} needs ranks"
    return Measured(spec, protocol, team)


def _blank(spec: CaseSpec, protocol: Protocol, op: Op, status: Status, reason: str) -> Case:
    shape = spec.shape()
    return blank_case(
        spec,
        op,
        status,
        reason=reason,
        impl=protocol.impl,
        granularity=protocol.granularity,
        knobs={knob.name: knob.of(shape) for knob in protocol.knobs},
    )


def _run_all(
    spec: CaseSpec, protocol: Protocol, runner: Runner, ops: Sequence[Op], on_progress: Progress
) -> dict[Op, Case]:
    """Run operations in turn; after one that failed the others are not run."""
    cases: dict[Op, Case] = {}
    failed: str | None = None
    try:
        _run_first_dispatch(runner, spec.form, ops)
    except UsageError:
        raise
    except EpbenchError as error:
        failed = f"not run, because a first dispatch ended with: {error}"
        cases[ops[0]] = _blank(spec, protocol, ops[0], _status_of(error), failed)
    for place, op in enumerate(ops):
        if failed:
            cases.setdefault(op, _blank(spec, protocol, op, "skipped", failed))
            continue

        def report(text: str, share: float, place: int = place, op: Op = op) -> None:
            on_progress(f"{op} {text}", (place + share) / len(ops))

        cases[op] = _run_case(spec, protocol, runner, op, report)
        if cases[op].status in ("error", "timeout"):
            failed = f"not run, because {op} ended with: {cases[op].reason}"
    return cases


def _run_first_dispatch(runner: Runner, form: Form, ops: Sequence[Op]) -> None:
    """Run the dispatch that a cached form builds on, or that would run once only."""
    if form != "fresh" or "pair" not in ops:
        runner.first_dispatch()


def _status_of(error: EpbenchError) -> Status:
    return "timeout" if error.exit_code == TimeoutFailure.exit_code else "error"


def _run_case(
    spec: CaseSpec, protocol: Protocol, runner: Runner, op: Op, on_progress: Progress
) -> Case:
    halves: list[HalfOp] = ["dispatch", "combine"] if op == "pair" else [op]
    try:
        seen = runner.observe(halves, on_progress)
    except UsageError:
        raise
    except EpbenchError as error:
        return _blank(spec, protocol, op, _status_of(error), str(error))
    account, samples, copies = runner.account, seen.samples_us, list(seen.memcpy_samples_us)
    check = Check(num_wrong=seen.check.num_wrong, num_checked=seen.check.num_checked)
    blank = _blank(spec, protocol, op, "incorrect", seen.check.first or "wrong")
    wrong = seen.check.num_wrong > 0
    time_us = percentile(samples, 50)
    capped = spec.fabric.capped
    own_us, best_us = account.own_us(halves), account.best_us(halves)
    several = len(samples) > 1
    return msgspec.structs.replace(
        blank,
        status="incorrect" if wrong else "passed",
        reason=blank.reason if wrong else None,
        time_us=time_us,
        samples_us=samples,
        p5_us=percentile(samples, 5) if several else None,
        p95_us=percentile(samples, 95) if several else None,
        p99_us=percentile(samples, 99) if len(samples) >= _ENOUGH_FOR_P99 else None,
        skew_pct=seen.skew_pct,
        rank_us=seen.rank_us,
        rank_timer_us=list(seen.rank_timer_us),
        memcpy_us=percentile(copies, 50) if copies else None,
        memcpy_samples_us=copies,
        bound_own_us=own_us if capped else None,
        bound_best_us=best_us if capped else None,
        efficiency=own_us / time_us if capped and own_us > 0 else None,
        phases_us=seen.phases_us,
        bytes=account.totals(halves),
        gbs=account.rates(halves, time_us),
        check=check,
        sim=seen.sim,
        clocks=seen.clocks,
    )


#: A percentile of fewer samples is one of its outermost values.
_ENOUGH_FOR_P99 = 100


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile, between samples by linear interpolation."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
