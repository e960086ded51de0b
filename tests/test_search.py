"""Searching knobs: what is tried, what is taken, what is dropped."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from bench.tuning.search import Search, Setting, Trial
from kernels.knobs import Knob

_KNOBS = (Knob("a", "", (1, 2, 3), 1), Knob("b", "", (1, 2, 4, 8), 2))


def _bowl(setting: Setting) -> float:
    """Least at a = 3, b = 8; the way there from the default is downhill."""
    return 100.0 - 10 * setting["a"] - setting["b"]


class _Measured:
    """Gives times by a formula, and keeps what it was asked for."""

    def __init__(
        self, time_us: Callable[[Setting], float], wrong: Callable[[Setting], bool] | None = None
    ) -> None:
        self.asked: list[dict[str, int]] = []
        self._time_us = time_us
        self._wrong = wrong or (lambda _: False)

    def __call__(self, settings: Sequence[Setting]) -> Iterator[Trial]:
        for setting in settings:
            self.asked.append(dict(setting))
            if self._wrong(setting):
                yield Trial(setting, status="incorrect", reason="a row is wrong")
            else:
                yield Trial(setting, (self._time_us(setting), self._time_us(setting) + 2))


def _search(measured: _Measured, *, budget: int = 1000, **changes: object) -> Search:
    fields = {
        "knobs": _KNOBS,
        "default": {"a": 1, "b": 2},
        "measure": measured,
        "refuses": lambda _: None,
        "num_seeds": 2,
        "budget": budget,
    }
    return Search(**{**fields, **changes})


def _best(search: Search) -> Setting:
    return search.ranking()[0].setting


def test_descent_ends_where_no_choice_is_faster() -> None:
    measured = _Measured(_bowl)
    search = _search(measured)
    search.descend()
    assert _best(search) == {"a": 3, "b": 8}
    assert search.is_complete
    assert measured.asked[0] == {"a": 1, "b": 2}
    assert search.num_runs == 2 * len(measured.asked)


def test_nothing_is_measured_twice() -> None:
    measured = _Measured(_bowl)
    _search(measured).descend()
    keys = [tuple(setting.items()) for setting in measured.asked]
    assert len(set(keys)) == len(keys)


def test_descent_meets_a_knob_again_after_another_has_moved() -> None:
    """a = 3 pays only once b is 8."""
    measured = _Measured(
        lambda s: 100.0 - s["b"] - (50 if (s["a"], s["b"]) == (3, 8) else 5 * (s["a"] == 1))
    )
    search = _search(measured)
    search.descend()
    assert _best(search) == {"a": 3, "b": 8}


def test_equal_times_keep_the_default() -> None:
    search = _search(_Measured(lambda _: 7.0))
    search.descend()
    assert _best(search) == {"a": 1, "b": 2}


def test_a_default_that_is_no_choice_is_where_it_begins() -> None:
    search = _search(_Measured(lambda s: abs(s["b"] - 5)), default={"a": 1, "b": 5})
    search.descend()
    assert _best(search) == {"a": 1, "b": 5}


def test_the_fastest_is_not_taken_where_it_is_wrong() -> None:
    search = _search(_Measured(_bowl, lambda s: s["b"] == 8))
    search.descend()
    assert _best(search) == {"a": 3, "b": 4}
    assert {trial.setting["b"] for trial in search.dropped()} == {8}
    assert {trial.reason for trial in search.dropped()} == {"a row is wrong"}


def test_a_wrong_default_ends_the_search() -> None:
    measured = _Measured(_bowl, lambda s: s == {"a": 1, "b": 2})
    search = _search(measured)
    search.descend()
    assert len(measured.asked) == 1
    assert search.ranking() == []
    assert search.first is not None
    assert not search.first.is_right


def test_what_is_refused_costs_nothing() -> None:
    measured = _Measured(_bowl)
    search = _search(measured, refuses=lambda s: "too many" if s["a"] * s["b"] > 8 else None)
    search.descend()
    assert all(setting["a"] * setting["b"] <= 8 for setting in measured.asked)
    assert search.num_refused > 0
    assert search.num_runs == 2 * len(measured.asked)


@pytest.mark.parametrize("budget", [2, 3, 4, 7, 10])
def test_the_budget_is_kept(budget: int) -> None:
    measured = _Measured(_bowl)
    search = _search(measured, budget=budget)
    search.descend()
    assert search.num_runs <= budget
    assert len(measured.asked) == budget // 2
    assert not search.is_complete


def test_exhaustion_tries_every_combination_and_the_default() -> None:
    measured = _Measured(lambda s: 10.0 if (s["a"], s["b"]) == (2, 4) else 50.0 + s["a"])
    search = _search(measured, default={"a": 1, "b": 5})
    assert search.cost() == 2 * 13
    search.exhaust()
    assert _best(search) == {"a": 2, "b": 4}
    assert search.num_runs == 2 * 13
    assert search.is_complete


def test_descent_can_miss_what_exhaustion_finds() -> None:
    """Two knobs that pay together only."""

    def together(s: Setting) -> float:
        return 10.0 if (s["a"], s["b"]) == (3, 8) else 50.0 + s["a"] + s["b"]

    by_one, by_all = _search(_Measured(together)), _search(_Measured(together))
    by_one.descend()
    by_all.exhaust()
    assert _best(by_one) != _best(by_all) == {"a": 3, "b": 8}


def test_a_search_that_is_stopped_keeps_its_best() -> None:
    def stop(settings: Sequence[Setting]) -> Iterator[Trial]:
        for setting in settings:
            if setting == {"a": 3, "b": 2}:
                raise KeyboardInterrupt
            yield Trial(setting, (_bowl(setting),) * 2)

    search = _search(_Measured(_bowl), measure=stop)
    with pytest.raises(KeyboardInterrupt):
        search.descend()
    assert _best(search) == {"a": 2, "b": 2}
    assert not search.is_complete
