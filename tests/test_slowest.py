"""Times over ranks: the slowest counts, and slowed iterations on no rank."""

from collections.abc import Sequence

import numpy as np
from fake_ranks import run_ranks

from bench.check import CheckResult
from bench.observed import Observed
from bench.slowest import Iteration, summary
from comms.cuda.clocks import Clock
from kernels.devices.base import Timed


def _iteration(
    total_us: float, timer_us: int | None = None, clock: Clock | None = None
) -> Iteration:
    phases = np.array([0.25, 0.75]) * total_us * 1000
    timer_ns = None if timer_us is None else timer_us * 1000
    return Iteration(Timed(["one", "two"], total_us * 1000, phases, timer_ns), clock=clock)


def _summaries(rows: Sequence[Sequence[Iteration]]) -> list[Observed]:
    found = run_ranks(len(rows), lambda ranks: summary(ranks, rows[ranks.rank], CheckResult()))
    assert all(isinstance(one, Observed) for one in found), found
    return found


def test_an_iteration_is_as_long_as_on_its_slowest_rank() -> None:
    rows = [[_iteration(10, 11), _iteration(30, 31)], [_iteration(20, 21), _iteration(12, 13)]]
    for seen in _summaries(rows):
        assert seen.samples_us == [20, 30]
        assert seen.rank_us == [20, 16]
        assert seen.rank_timer_us == [21, 17]
        assert seen.phases_us == {"one": 6.25, "two": 18.75}
        assert seen.skew_pct == 100 * 4 / 25
        assert seen.clocks is None


def test_ranks_without_timers_have_none() -> None:
    (seen,) = _summaries([[_iteration(10)]])
    assert list(seen.rank_timer_us) == []


def test_an_iteration_that_was_slowed_on_one_rank_counts_on_none() -> None:
    cool, hot = Clock(1980, 0x1), Clock(1500, 0x40)
    rows = [
        [_iteration(10, clock=cool), _iteration(90, clock=hot), _iteration(12, clock=cool)],
        [_iteration(11, clock=cool), _iteration(10, clock=cool), _iteration(13, clock=cool)],
    ]
    for seen in _summaries(rows):
        assert seen.samples_us == [11, 13]
        assert seen.clocks is not None
        assert (seen.clocks.num_slowed, seen.clocks.num_discarded) == (1, 1)
        assert seen.clocks.reasons == ["temperature, by hardware"]
        assert (seen.clocks.sm_mhz_min, seen.clocks.sm_mhz_max) == (1500, 1980)


def test_reasons_that_are_no_slowdown_do_not_count() -> None:
    idle = Clock(345, 0x1 | 0x2 | 0x10 | 0x100)
    (seen,) = _summaries([[_iteration(10, clock=idle)]])
    assert seen.clocks is not None
    assert (seen.clocks.num_slowed, seen.clocks.reasons) == (0, [])


def test_all_count_where_all_are_slowed() -> None:
    hot = Clock(1500, 0x4)
    (seen,) = _summaries([[_iteration(10, clock=hot), _iteration(12, clock=hot)]])
    assert seen.samples_us == [10, 12]
    assert seen.clocks is not None
    assert (seen.clocks.num_slowed, seen.clocks.num_discarded) == (2, 0)
