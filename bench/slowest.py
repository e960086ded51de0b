"""What all ranks' times of an operation amount to: each iteration's is the slowest rank's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.check import CheckResult
from bench.observed import Observed
from bench.records.record import Clocks
from comms.cuda.clocks import Clock, names_of
from comms.mpi.ranks import Ranks
from kernels.devices.base import Timed

_NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class Iteration:
    """What a process saw of one iteration.

    Attributes:
        timed: the times of its ranks.
        copy_ns: time of a plain copy before it, None where there was none.
        clock: its GPU's clock, None where there is none.
    """

    timed: Timed
    copy_ns: float | None = None
    clock: Clock | None = None


def summary(ranks: Ranks, iterations: Sequence[Iteration], check: CheckResult) -> Observed:
    """Reduce over ranks: each iteration by its slowest, a rank by its median iteration; collective.

    Iterations in which the GPU of some rank was slowed are left out on all ranks; all count where
    none would be left.
    """
    gathered = ranks.comm.allgather(list(iterations))
    kept, clocks = _kept(gathered)
    by_rank = [[one[number] for number in kept] for one in gathered]
    all_us = _microseconds([[one.timed.total_ns for one in rows] for rows in by_rank])
    phases_us = _microseconds([[one.timed.phases_ns for one in rows] for rows in by_rank])
    copies = [[one.copy_ns for one in rows if one.copy_ns is not None] for rows in by_rank]
    timers = [[one.timed.timer_ns for one in rows] for rows in by_rank]
    has_timers = all(value is not None for rows in timers for value in rows)
    rank_us = np.median(all_us, axis=1)
    samples_us = all_us.max(axis=0)
    phases = np.median(phases_us.max(axis=0), axis=0)
    return Observed(
        check=check,
        samples_us=samples_us.tolist(),
        phases_us=dict(zip(iterations[0].timed.phases, phases.tolist(), strict=True)),
        skew_pct=100 * float(np.ptp(rank_us) / np.median(samples_us)),
        rank_us=rank_us.tolist(),
        rank_timer_us=np.median(_microseconds(timers), axis=1).tolist() if has_timers else [],
        memcpy_samples_us=_microseconds(copies).max(axis=0).tolist() if copies[0] else [],
        clocks=clocks,
    )


def _kept(gathered: Sequence[Sequence[Iteration]]) -> tuple[list[int], Clocks | None]:
    """Return the iterations that count, and what the GPUs' clocks did."""
    seen = [[one.clock for one in row] for row in zip(*gathered, strict=True)]
    clocks = [clock for row in seen for clock in row if clock is not None]
    everything = list(range(len(seen)))
    if not clocks:
        return everything, None
    slowed = [any(clock is not None and clock.is_slowed for clock in row) for row in seen]
    kept = [number for number in everything if not slowed[number]] or everything
    reasons = 0
    for clock in clocks:
        reasons |= clock.reasons
    return kept, Clocks(
        sm_mhz_min=min(clock.sm_mhz for clock in clocks),
        sm_mhz_max=max(clock.sm_mhz for clock in clocks),
        reasons=names_of(reasons),
        num_slowed=sum(slowed),
        num_discarded=len(everything) - len(kept),
    )


def _microseconds(values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    array = np.asarray(values, np.float64)
    microseconds: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = array / _NS_PER_US
    return microseconds
