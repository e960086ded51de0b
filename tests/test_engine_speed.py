"""The engine against an independent SimPy program, and the page of `bench.engine.speed`."""

import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.engine.cases import Sample, SpeedCase, time_engine, time_simpy
from bench.engine.speed import COLUMNS, compare, format_table, main

SMALL = SpeedCase("small", 1, 4, "pull", "uniform", num_tokens=256, num_sms=4)


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, ranks_per_node=8, num_tokens=96, num_sms=2),
        replace(SMALL, ranks_per_node=1, num_tokens=64),
        replace(SMALL, num_tokens=3),
    ],
    ids=["ep4", "ep8", "ep1", "fewer tokens than warps"],
)
def test_simpy_program_agrees_with_engine(case: SpeedCase) -> None:
    pytest.importorskip("simpy")
    engine, simpy = time_engine(case), time_simpy(case)
    assert [sample.op for sample in engine] == [sample.op for sample in simpy]
    for ours, theirs in zip(engine, simpy, strict=True):
        assert ours.num_rows == theirs.num_rows > 0
        assert ours.time_ps == pytest.approx(theirs.time_ps, rel=0.02)


def test_simpy_program_notices_a_slower_link() -> None:
    # The agreement above could fail: the program follows the fabric, not a constant.
    pytest.importorskip("simpy")
    import msgspec

    from bench.engine.simpy_direct import run_dispatch
    from bench.workloads.workload import Workload
    from comms.fabric import load_fabric
    from kernels.shape import Shape

    h800 = load_fabric("h800")
    half = msgspec.structs.replace(h800.nvlink.payload_gbs, value=h800.nvlink.payload_gbs.value / 2)
    slower = replace(h800, nvlink=msgspec.structs.replace(h800.nvlink, payload_gbs=half))
    shape = Shape(1, 4, 512, 7168, 256, 8, 16, prefix=192)
    topk_idx = Workload.from_preset("deepseek-v3", 512).topk(4, 4).topk_idx
    times = [run_dispatch(shape, fabric, topk_idx).time_ps for fabric in (h800, slower)]
    assert times[1] > 1.5 * times[0]


def test_table_of_a_run_parses() -> None:
    result = CliRunner().invoke(main, ["--case", "ep8", "--tokens", "24", "--num-sms", "2"])
    assert result.exit_code == 0, result.output
    header, *rows = (line.split() for line in result.output.splitlines())
    assert header == list(COLUMNS)
    assert [row[:3] for row in rows] == [["ep8", "engine", op] for op in ("dispatch", "combine")]
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert float(cells["virtual_us"]) > 0
        assert int(cells["events"]) > int(cells["rows"]) > 0
        assert int(cells["peak_mb"]) > 0


def test_table_leaves_unknown_events_out_and_comparison_counts_seconds() -> None:
    ours = Sample(
        "ep8", "engine", "dispatch", 2_000_000, 100, 50, wall_s=0.5, cpu_s=0.4, peak_bytes=10**6
    )
    theirs = replace(ours, program="simpy", num_events=None, time_ps=1_990_000, wall_s=6.0)
    rows = [line.split() for line in format_table([ours, theirs]).splitlines()[1:]]
    assert rows[0] == [
        "ep8",
        "engine",
        "dispatch",
        "2.0",
        "100",
        "50",
        "0.500",
        "0.400",
        "200",
        "100",
        "1",
    ]
    assert rows[1] == [
        "ep8",
        "simpy",
        "dispatch",
        "2.0",
        "-",
        "50",
        "6.000",
        "0.400",
        "-",
        "8",
        "1",
    ]
    sentence, total = compare([ours], [theirs])
    assert "engine 0.500 s, SimPy 6.000 s: 12.0 times" in sentence
    assert "2.0 us and 2.0 us, 0.50% apart" in sentence
    assert total == "both: 12.0 times the rows/s"


def test_missing_simpy_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    result = CliRunner().invoke(main, ["--case", "ep8", "--simpy"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: the comparison needs simpy, which is not installed; "
        "install it by pip install -e '.[dev]'\n"
    )


def test_simpy_of_many_nodes_is_refused() -> None:
    pytest.importorskip("simpy")
    result = CliRunner().invoke(main, ["--case", "ep64", "--simpy"])
    assert result.exit_code == 2
    assert "use --case ep8 or all" in result.stderr


def test_unknown_case_names_the_choices() -> None:
    result = CliRunner().invoke(main, ["--case", "ep9"])
    assert result.exit_code == 2
    assert "'ep8', 'ep64', 'all'" in result.stderr
