"""What the harness wants of a device: run an operation, and say what it showed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.check import CheckResult
from bench.records.record import Clocks, Sim
from bench.traffic.account import Account
from bench.traffic.bounds import HalfOp

#: Called with a short text and the share of the case that is done, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a device showed of one operation.

    Attributes:
        check: what the outputs were worth.
        samples_us: time of each iteration, the slowest rank's.
        phases_us: time of each launch by its name, the slowest rank's.
        skew_pct: how far ranks were apart, relative to the time.
        rank_us: median time of each process's ranks; none where a device has one clock.
        rank_timer_us: likewise by the timers of their GPUs, none where there are none.
        memcpy_samples_us: time of `memcpy` of the same received bytes before each iteration, the
            slowest rank's; none where it was not timed.
        clocks: what the GPUs' clocks did.
        sim: what a simulator did.
    """

    check: CheckResult
    samples_us: list[float]
    phases_us: dict[str, float]
    skew_pct: float
    rank_us: list[float]
    rank_timer_us: Sequence[float] = ()
    memcpy_samples_us: Sequence[float] = ()
    clocks: Clocks | None = None
    sim: Sim | None = None


class Runner(Protocol):
    """A case on a device, from its first run to its last."""

    account: Account

    def first_dispatch(self) -> None:
        """Run the dispatch that later operations build on."""

    def observe(self, halves: Sequence[HalfOp], on_progress: Progress) -> Observed:
        """Run operations in order with no host between them, check and time them."""

    def close(self) -> None:
        """Give back what the device holds."""
