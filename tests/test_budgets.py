"""Knees of SM budgets, and their tables."""

import re

import msgspec
import pytest
from conftest import timed

from bench.budgets import Knee, knee_of, knees_frame, sweeps
from bench.pages import render
from bench.pages.table import build_page
from bench.records.record import Case, Gbs, Run, Source

#: Times by budget of the ends of the copy rate: fast SMs need fewer.
_TIMES = {
    "low": {2: 800.0, 4: 400.0, 8: 210.0, 16: 205.0},
    "mid": {2: 400.0, 4: 210.0, 8: 200.0, 16: 204.0},
    "high": {2: 300.0, 4: 200.0, 8: 200.0, 16: 200.0},
}


def _cases(run: Run, times: dict[str, dict[int, float]], **changes: object) -> list[Case]:
    passed = run.cases[0]
    return [
        timed(
            msgspec.structs.replace(passed, num_sms=num_sms, sm_copy=end, **changes),
            time_us,
            gbs=Gbs(logical=0.0, nvlink=16000 / time_us, rdma=0.0),
        )
        for end, by_sms in times.items()
        for num_sms, time_us in by_sms.items()
    ]


@pytest.mark.parametrize(
    ("times", "knee"),
    [
        ({2: 400.0, 4: 210.0, 8: 200.0, 16: 204.0}, Knee(4, 4, 2, is_open=False)),
        ({2: 400.0, 4: 210.1, 8: 200.0, 16: 204.0}, Knee(8, 8, 4, is_open=False)),
        ({2: 100.0, 4: 100.0}, Knee(2, 2, 0, is_open=False)),
        ({2: 400.0, 4: 300.0, 8: 200.0}, Knee(8, 8, 4, is_open=True)),
        ({16: 204.0, 8: 230.0, 4: 205.0, 2: 400.0}, Knee(4, 4, 2, is_open=False)),
    ],
)
def test_the_knee_is_the_first_budget_near_the_best(times: dict[int, float], knee: Knee) -> None:
    assert knee_of(times) == knee


def test_no_times_have_no_knee() -> None:
    with pytest.raises(ValueError, match="needs times"):
        knee_of({})


def test_the_interval_is_over_the_copy_rates_that_were_run(run: Run) -> None:
    (sweep,) = sweeps(_cases(run, _TIMES))
    assert sweep.knee() == Knee(4, 8, 2, is_open=False)
    (middle,) = sweeps(_cases(run, {"mid": _TIMES["mid"]}))
    assert middle.knee() == Knee(4, 4, 2, is_open=False)
    assert sweep.model_sms() == 6


def test_fewer_than_four_budgets_are_no_sweep(run: Run) -> None:
    three = dict.fromkeys((2, 4, 8), 100.0)
    assert sweeps(_cases(run, {"mid": three})) == []
    (sweep,) = sweeps(_cases(run, {"mid": _TIMES["mid"], "low": three}))
    assert list(sweep.ends) == ["mid"]


def test_only_passed_cases_count(run: Run) -> None:
    cases = _cases(run, {"mid": _TIMES["mid"]})
    wrong = msgspec.structs.replace(cases[0], status="incorrect", reason="wrong")
    assert sweeps([wrong, *cases[1:]]) == []


def test_kernels_operations_and_knobs_are_apart(run: Run) -> None:
    middle = {"mid": _TIMES["mid"]}
    others = [
        {"variant": "push"},
        {"op": "pair"},
        {"form": "cached"},
        {"seed": 5},
        {"knobs": {"warps": 4}, "turned": ["warps"]},
    ]
    cases = _cases(run, middle)
    for changes in others:
        cases += _cases(run, middle, **changes)
    assert len(sweeps(cases)) == 1 + len(others)


def test_kernel_files_of_one_name_are_apart(run: Run) -> None:
    middle, slower = {"mid": _TIMES["mid"]}, {"mid": _TIMES["low"]}
    a, b = (Source(f"{folder}/mine.py", "mine", folder) for folder in "ab")
    cases = [*_cases(run, middle, source=a), *_cases(run, slower, source=b)]
    frame = knees_frame(cases)
    assert frame["source_path"].tolist() == ["a/mine.py", "b/mine.py"]
    assert frame["source_sha256"].tolist() == ["a", "b"]
    assert frame["knee_low"].tolist() == [4, 8]
    (table,) = build_page(msgspec.structs.replace(run, cases=cases)).budgets
    assert [cells[0] for cells in table.rows] == [
        *("direct/pull a/mine.py", "direct/pull b/mine.py")
    ]


def test_a_frame_of_knees(run: Run) -> None:
    frame = knees_frame(_cases(run, _TIMES))
    row = frame.iloc[0]
    assert (row["kernel"], row["op"], row["knee_low"], row["knee_high"]) == (
        "direct",
        "dispatch",
        4,
        8,
    )
    assert (row["knee_above"], row["knee_is_open"], row["model_sms"]) == (2, False, 6)
    assert len(knees_frame([])) == 0
    assert list(knees_frame([]).columns) == list(frame.columns)


def test_the_page_has_a_table_of_budgets(run: Run) -> None:
    swept = msgspec.structs.replace(run, cases=_cases(run, _TIMES))
    lines = render.plain(build_page(swept)).splitlines()
    (title,) = [i for i, line in enumerate(lines) if line.startswith("# SM BUDGETS | PREDICTED")]
    last = ["knee", "in", "model"]
    names, units, row = (lines[title + i] for i in (1, 2, 3))
    assert re.split(r"\s{2,}", names)[2:] == ["2 SMs", "4 SMs", "8 SMs", "16 SMs", *last]
    assert units.split() == ["#", *["(%)"] * 4, "(SMs)", "(SMs)", "(SMs)"]
    assert row.split() == ["direct/pull", "fresh", "25", "48", "50", "49", "4..8", "(2,", "8]", "6"]
    knee = "# knee: smallest budget whose time is within 5 % of the sweep's best, "
    assert any(line.startswith(knee) for line in lines)
    assert "| 4..8 | (2, 8] | 6 |" in render.markdown(build_page(swept))


def test_an_open_knee_and_no_caps(run: Run) -> None:
    falling = {"mid": {2: 400.0, 4: 300.0, 8: 200.0, 16: 100.0}}
    uncapped = {
        "fabric": "uncapped",
        "caps": msgspec.structs.replace(run.cases[0].caps, nvlink_gbs=None, rdma_gbs=None),
    }
    swept = msgspec.structs.replace(run, cases=_cases(run, falling, **uncapped))
    (table,) = build_page(swept).budgets
    assert table.rows[0][2:] == ("40.0", "53.3", "80.0", "160.0", "16", "(8, inf)", "-")
    assert set(table.units) == {"", "(GB/s)", "(SMs)"}


def test_few_budgets_leave_the_page_as_it_was(run: Run) -> None:
    page = build_page(run)
    assert page.budgets == ()
    assert "knee" not in render.plain(page)
