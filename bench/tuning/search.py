"""Searching the knobs of one kernel: by one knob at a time, or all combinations.

A search knows no kernels: it is given what measures a setting. Its best is right at any moment, so
a search that is stopped loses nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kernels.knobs import Knob

#: A value of every knob.
Setting = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a setting was worth.

    Attributes:
        times_us: its time by seed, empty where it was dropped.
        reason: why it was dropped: it cannot be run, or a run of it failed or was wrong.
        status: of the run that it was dropped for.
    """

    setting: Setting
    times_us: tuple[float, ...] = ()
    status: str = "passed"
    reason: str | None = None

    @property
    def mean_us(self) -> float:
        """Mean time over seeds."""
        return sum(self.times_us) / len(self.times_us)

    @property
    def is_right(self) -> bool:
        """Whether every run of it passed."""
        return self.reason is None


#: Gives a trial for each setting, in order, as soon as it is known.
Measure = Callable[[Sequence[Setting]], Iterator[Trial]]
#: Says why a setting cannot be run, or None.
Refuses = Callable[[Setting], str | None]


@dataclass(slots=True)
class Search:
    """A search that goes on from its default.

    Attributes:
        knobs: what is searched.
        default: where it begins.
        num_seeds: runs that a setting costs.
        budget: most runs.
        trials: everything measured, by values of the knobs.
        num_refused: settings that cannot be run.
        is_complete: whether the search ended by itself, and not by its budget.
    """

    knobs: Sequence[Knob]
    default: Setting
    measure: Measure
    refuses: Refuses
    num_seeds: int
    budget: int
    trials: dict[tuple[int, ...], Trial] = field(default_factory=dict)
    num_refused: int = 0
    is_complete: bool = False
    _refused: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def num_runs(self) -> int:
        """Runs made, of settings that were measured."""
        return self.num_seeds * len(self.trials)

    @property
    def first(self) -> Trial | None:
        """The trial of the default, None before it."""
        return self.trials.get(self._key(self.default))

    def ranking(self) -> list[Trial]:
        """Return the right trials, fastest first; of equal ones the earliest."""
        right = [trial for trial in self.trials.values() if trial.is_right]
        return sorted(right, key=lambda trial: trial.mean_us)

    def dropped(self) -> list[Trial]:
        """Return the trials that failed or were wrong."""
        return [trial for trial in self.trials.values() if not trial.is_right]

    def descend(self) -> None:
        """Try the choices of one knob after another from the best setting, until none is faster."""
        self._try([self.default])
        improved = bool(self.ranking())
        while improved:
            before = self._best()
            for knob in self.knobs:
                best = self._best()
                if not self._try([{**best, knob.name: choice} for choice in knob.choices]):
                    return
            improved = self._best() != before
        self.is_complete = True

    def exhaust(self) -> None:
        """Try every combination of choices."""
        settings = self.combinations()
        self.is_complete = self._try([self.default, *settings])

    def combinations(self) -> list[Setting]:
        """Return every combination of choices."""
        names = [knob.name for knob in self.knobs]
        values = itertools.product(*(knob.choices for knob in self.knobs))
        return [dict(zip(names, combination, strict=True)) for combination in values]

    def cost(self) -> int:
        """Return the runs that `exhaust` makes."""
        keys = {self._key(one) for one in self.combinations() if self.refuses(one) is None}
        return self.num_seeds * len(keys | {self._key(self.default)})

    def _best(self) -> Setting:
        return self.ranking()[0].setting

    def _key(self, setting: Setting) -> tuple[int, ...]:
        return tuple(setting[knob.name] for knob in self.knobs)

    def _try(self, settings: Sequence[Setting]) -> bool:
        """Measure the settings that are new; return whether the budget allowed it."""
        new: dict[tuple[int, ...], Setting] = {}
        for setting in settings:
            key = self._key(setting)
            if key in self.trials or key in self._refused:
                continue
            if self.refuses(setting) is None:
                new[key] = setting
            else:
                self._refused.add(key)
                self.num_refused += 1
        allowed = max(self.budget - self.num_runs, 0) // self.num_seeds
        chosen = list(new.values())[:allowed]
        if chosen:
            for trial in self.measure(chosen):
                self.trials[self._key(trial.setting)] = trial
        return len(chosen) == len(new)
