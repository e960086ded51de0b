"""How many SMs are enough: the knee of times over SM budgets, derived from the cases of runs.

The knee of a sweep is the smallest budget whose time is within `WITHIN` of the fastest. A sweep
sees only the budgets that were run: the true knee is above the budget before the one it finds, and
may be above all of them where only the last one is fast enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records.record import AXES, Case, Source, identity
from bench.traffic.sm_model import model_sms
from comms.fabric import End, load_fabric

if TYPE_CHECKING:
    import pandas as pd

#: How far above the fastest time a budget is as good.
WITHIN = 0.05
#: Budgets that make a sweep.
LEAST_BUDGETS = 4

_AXES = tuple(name for name in AXES if name not in ("num_sms", "sm_copy"))
_SOURCE = {f"source_{name}": name for name in Source.__struct_fields__}


@dataclass(frozen=True, slots=True)
class Knee:
    """The knee of a kernel over the ends of the SM's copy rate that were run.

    Attributes:
        low: smallest budget found at any end.
        high: greatest, likewise.
        above: the budget of the sweep before `low`, 0 where there is none: the true knee is
            greater.
        is_open: whether only the last budget was fast enough at an end, so that the true knee may
            be beyond the sweep.
    """

    low: int
    high: int
    above: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """Passed cases of one kernel and operation over SM budgets.

    Attributes:
        ends: cases by end of the SM's copy rate, each in ascending order of budgets.
    """

    ends: Mapping[End, Sequence[Case]]

    @property
    def first(self) -> Case:
        """Any of the cases, for what they have in common."""
        return next(iter(self.shown.values()))

    @property
    def shown(self) -> dict[int, Case]:
        """Cases by budget: of the middle of the copy rate, or of the first end that was run."""
        cases = self.ends.get("mid") or next(iter(self.ends.values()))
        return {case.num_sms: case for case in cases}

    def knee(self) -> Knee:
        """Return where more SMs no longer help."""
        times = [{one.num_sms: _time(one) for one in cases} for cases in self.ends.values()]
        found = [knee_of(times_us) for times_us in times]
        return Knee(
            low=min(knee.low for knee in found),
            high=max(knee.high for knee in found),
            above=min(knee.above for knee in found),
            is_open=any(knee.is_open for knee in found),
        )

    def model_sms(self) -> int | None:
        """Return the analytic model's SMs for this world, see `bench.traffic.sm_model`."""
        case = self.first
        return model_sms(
            load_fabric(case.fabric),
            case.nodes,
            case.world_size // case.nodes,
            case.num_experts,
            case.num_topk,
        )


def knee_of(times_us: Mapping[int, float]) -> Knee:
    """Return the knee of times by budget.

    Raises:
        ValueError: there are no times.
    """
    budgets = sorted(times_us)
    if not budgets:
        raise ValueError("a knee needs times")
    limit = (1 + WITHIN) * min(times_us.values())
    place = next(i for i, budget in enumerate(budgets) if times_us[budget] <= limit)
    knee = budgets[place]
    return Knee(knee, knee, budgets[place - 1] if place else 0, place == len(budgets) - 1)


def sweeps(cases: Iterable[Case]) -> list[Sweep]:
    """Return the sweeps of passed cases with at least `LEAST_BUDGETS` budgets at an end.

    Ends with fewer budgets are left out.
    """
    groups: dict[tuple[object, ...], dict[End, dict[int, Case]]] = {}
    for case in cases:
        if case.status == "passed":
            ends = groups.setdefault(identity(case, _AXES), {})
            ends.setdefault(case.sm_copy, {})[case.num_sms] = case
    found = []
    for ends in groups.values():
        kept: dict[End, Sequence[Case]] = {
            end: [by_sms[num_sms] for num_sms in sorted(by_sms)]
            for end, by_sms in ends.items()
            if len(by_sms) >= LEAST_BUDGETS
        }
        if kept:
            found.append(Sweep(kept))
    return found


def knees_frame(cases: Iterable[Case]) -> pd.DataFrame:
    """Return one row per sweep: its axes, `source_path` and the like, `knee_low`, `knee_high`,
    `knee_above`, `knee_is_open` and `model_sms`."""
    import pandas as pd

    records = []
    for sweep in sweeps(cases):
        case, knee = sweep.first, sweep.knee()
        records.append(
            {
                **{name: getattr(case, name) for name in _AXES},
                **{column: getattr(case.source, name, None) for column, name in _SOURCE.items()},
                "knee_low": knee.low,
                "knee_high": knee.high,
                "knee_above": knee.above,
                "knee_is_open": knee.is_open,
                "model_sms": sweep.model_sms(),
            }
        )
    columns = [
        *_AXES,
        *_SOURCE,
        *("knee_low", "knee_high", "knee_above", "knee_is_open", "model_sms"),
    ]
    return pd.DataFrame(records, columns=columns).astype({"model_sms": "Int64"})


def _time(case: Case) -> float:
    assert case.time_us is not None
    return case.time_us
