"""The page: what a row says, what a heading says, and its three layouts."""

import io
import re

import msgspec
import pytest
from conftest import timed
from rich.console import Console

from bench.pages.render import markdown, plain, print_rich
from bench.pages.table import COLUMNS, Block, build_page
from bench.records.record import Caps, Case, Rank, Run


def cell(block: Block, kernel: str, sms: int, column: str) -> str:
    rows = [
        row
        for row in block.rows
        if row[COLUMNS.index("kernel/variant")] == kernel and row[COLUMNS.index("sms")] == str(sms)
    ]
    assert len(rows) == 1
    return rows[0][COLUMNS.index(column)]


def retimed(run: Run, kernel: str, time_us: float, **changes: object) -> Run:
    """Return the run with every case of `kernel/variant` timed anew."""
    name, _, variant = kernel.partition("/")
    cases = [
        timed(case, time_us, **changes)
        if (case.kernel, case.variant) == (name, variant) and case.status == "passed"
        else case
        for case in run.cases
    ]
    return msgspec.structs.replace(run, cases=cases)


def test_one_block_per_operation_with_a_row_per_kernel_and_sms(run: Run) -> None:
    dispatch, combine, pair = build_page(run).blocks
    assert [block.title.split(" | ")[-1] for block in (dispatch, combine, pair)] == [
        "dispatch fp8",
        "combine bf16",
        "pair fp8 + bf16",
    ]
    assert len(dispatch.rows) == 8
    assert len(combine.rows) == 6


def test_title_names_the_world_and_that_it_is_a_prediction(run: Run) -> None:
    title = build_page(run).blocks[0].title
    for part in ("PREDICTED", "H800", "EP8 (1 node x 8)", "deepseek-v3", "4096 tokens", "uniform"):
        assert part in title


def test_numbers_of_a_row(run: Run) -> None:
    run = retimed(run, "direct/pull", 128.0)
    block = build_page(run).blocks[0]
    expected = {
        "time": "128.0",
        "bound_own": "80.00",
        "bound_best": "64.00",
        "efficiency": "62.5",
        "nvlink": "120.0 75%",
        "rdma": "-",
        "#wrong": "0",
    }
    assert {name: cell(block, "direct/pull", 8, name) for name in expected} == expected
    assert block.units[COLUMNS.index("nvlink")] == "(of 160)"
    assert block.units[COLUMNS.index("rdma")] == "(of 47)"


def with_times(run: Run, kernel: str, times_us: dict[int, float]) -> Run:
    """Return the run with the cases of `kernel/variant` timed by their SMs."""
    name, _, variant = kernel.partition("/")
    cases = [
        timed(case, times_us[case.num_sms])
        if (case.kernel, case.variant) == (name, variant) and case.status == "passed"
        else case
        for case in run.cases
    ]
    return msgspec.structs.replace(run, cases=cases)


def test_speed_up_is_over_the_fastest_dedup_whatever_its_sms(run: Run) -> None:
    run = with_times(run, "nccl_like/dedup", {8: 162.0, 16: 108.0})
    run = retimed(run, "direct/pull", 54.0)
    block = build_page(run).blocks[0]
    assert cell(block, "direct/pull", 8, "vs dedup") == "2.00"
    assert cell(block, "direct/pull", 16, "vs dedup") == "2.00"
    assert cell(block, "nccl_like/dedup", 8, "vs dedup") == f"{108 / 162:.2f}"
    assert cell(block, "nccl_like/dedup", 16, "vs dedup") == "1.00"
    assert block.units[COLUMNS.index("vs dedup")] == "(x, 16 SMs)"


def test_fewest_sms_are_named_where_baselines_are_as_fast(run: Run) -> None:
    block = build_page(with_times(run, "nccl_like/dedup", {8: 108.0, 16: 108.0})).blocks[0]
    assert block.units[COLUMNS.index("vs dedup")] == "(x, 8 SMs)"


def test_a_baseline_that_is_wrong_is_no_rival(run: Run) -> None:
    run = with_times(run, "nccl_like/dedup", {8: 50.0, 16: 100.0})
    cases = [
        msgspec.structs.replace(case, status="incorrect", reason="a wrong row")
        if case.variant == "dedup" and case.num_sms == 8
        else case
        for case in run.cases
    ]
    run = retimed(msgspec.structs.replace(run, cases=cases), "direct/pull", 50.0)
    block = build_page(run).blocks[0]
    assert cell(block, "direct/pull", 8, "vs dedup") == "2.00"
    assert block.units[COLUMNS.index("vs dedup")] == "(x, 16 SMs)"


def test_cached_rows_are_compared_with_cached_rows(run: Run) -> None:
    cached = [
        msgspec.structs.replace(
            case, form="cached", time_us=case.time_us / 2 if case.time_us else None
        )
        for case in run.cases
    ]
    page = build_page(msgspec.structs.replace(run, cases=[*run.cases, *cached]))
    rows = [row for row in page.blocks[0].rows if row[0] == "nccl_like/dedup" and row[2] == "8"]
    assert {row[1]: row[COLUMNS.index("vs dedup")] for row in rows} == {
        "fresh": "1.00",
        "cached": "1.00",
    }


def test_fastest_selection_is_the_rival_of_its_column(run: Run) -> None:
    run = with_times(run, "nccl_like/selection", {8: 300.0, 16: 200.0})
    run = retimed(run, "direct/pull", 100.0)
    block = build_page(run).blocks[0]
    by_bytes, by_efficiency = map(float, cell(block, "direct/pull", 8, "vs selection").split(" x "))
    assert by_bytes * by_efficiency == pytest.approx(2.0)
    assert block.units[COLUMNS.index("vs selection")] == "(bytes x eff, 16 SMs)"


def test_speed_up_over_selection_is_bytes_times_efficiency(run: Run) -> None:
    run = retimed(run, "nccl_like/selection", 300.0, bound_own_us=120.0, efficiency=0.4)
    run = retimed(run, "direct/pull", 80.0, bound_own_us=40.0, efficiency=0.5)
    factors = cell(build_page(run).blocks[0], "direct/pull", 8, "vs selection")
    assert factors == "3.00 x 1.25"
    by_bytes, by_efficiency = map(float, factors.split(" x "))
    assert by_bytes * by_efficiency == pytest.approx(300.0 / 80.0)


def test_no_speed_up_without_the_rival(run: Run) -> None:
    cases = [case for case in run.cases if case.kernel == "direct"]
    block = build_page(msgspec.structs.replace(run, cases=cases)).blocks[0]
    assert cell(block, "direct/pull", 8, "vs dedup") == "-"
    assert cell(block, "direct/pull", 8, "vs selection") == "-"


def test_wrong_elements_and_their_reason_are_shown(run: Run) -> None:
    wrong = msgspec.structs.replace(
        run.cases[0],
        status="incorrect",
        reason="arrived after the kernel returned",
        check=msgspec.structs.replace(run.cases[0].check, num_wrong=5),
    )
    page = build_page(msgspec.structs.replace(run, cases=[wrong, *run.cases[1:]]))
    assert cell(page.blocks[0], "direct/pull", 8, "#wrong") == "5"
    assert page.blocks[0].notes == (
        "incorrect: direct/pull (fresh 8 SMs): arrived after the kernel returned",
    )
    assert "Wrong rows: 5 of" in page.footer[0]


def test_unchecked_case_is_not_called_right(run: Run) -> None:
    timeout = msgspec.structs.replace(
        run.cases[0],
        status="timeout",
        reason="waits",
        time_us=None,
        check=msgspec.structs.replace(run.cases[0].check, num_checked=0),
    )
    page = build_page(msgspec.structs.replace(run, cases=[timeout, *run.cases[1:]]))
    assert cell(page.blocks[0], "direct/pull", 8, "#wrong") == "N/A"
    assert cell(page.blocks[0], "direct/pull", 8, "time") == "-"


def test_skipped_rows_are_notes_with_their_reason(run: Run) -> None:
    combine = build_page(run).blocks[1]
    assert combine.notes == ("skipped: direct/push (fresh 8, fresh 16 SMs): no push here",)


def test_uncapped_rates_have_no_percent(run: Run) -> None:
    cases = [msgspec.structs.replace(case, caps=Caps(None, None)) for case in run.cases]
    block = build_page(msgspec.structs.replace(run, cases=cases)).blocks[0]
    assert cell(block, "direct/pull", 8, "nvlink") == "120.0"
    assert block.units[COLUMNS.index("nvlink")] == "(GB/s)"


def test_ends_of_the_sm_range_become_an_interval_of_one_row(run: Run) -> None:
    base = run.cases[0]
    ends = [
        msgspec.structs.replace(base, sm_copy="low", time_us=150.0),
        base,
        msgspec.structs.replace(base, sm_copy="high", time_us=90.0),
    ]
    block = build_page(msgspec.structs.replace(run, cases=ends)).blocks[0]
    assert len(block.rows) == 1
    assert cell(block, "direct/pull", 8, "time") == "108.0"
    assert cell(block, "direct/pull", 8, "range") == "90.00..150.0"
    assert COLUMNS.index("range") in block.columns
    assert COLUMNS.index("range") not in build_page(run).blocks[0].columns


def test_measured_paced_and_predicted_never_share_a_block(run: Run) -> None:
    cases = [
        msgspec.structs.replace(run.cases[0], fidelity=fidelity)
        for fidelity in ("predicted", "measured", "paced")
    ]
    page = build_page(msgspec.structs.replace(run, cases=cases))
    titles = [block.title.split(" | ")[0] for block in page.blocks]
    assert titles == ["PREDICTED", "MEASURED", "PACED"]
    assert [line.partition(":")[0] for line in page.heading[:3]] == titles


def test_plain_marks_everything_but_data_and_aligns_columns(run: Run) -> None:
    lines = plain(build_page(run)).splitlines()
    assert lines[0].startswith("# PREDICTED: simulated")
    assert "no GPU ran" in lines[0]
    data = [line for line in lines if not line.startswith("#")]
    assert len(data) == 8 + 6 + 8
    assert {len(re.split(r"\s{2,}", line.strip())) for line in data} == {12}
    header = next(line for line in lines if line.startswith("#kernel/variant"))
    first = data[0]
    assert header.index("#wrong") + len("#wrong") == len(first)


def test_markdown_is_a_table_per_block(run: Run) -> None:
    lines = markdown(build_page(run)).splitlines()
    assert lines[0].startswith("**PREDICTED")
    tables = [line for line in lines if line.startswith("| ")]
    assert len(tables) == 2 * 3 + 8 + 6 + 8
    assert {line.count("|") for line in tables} == {len(COLUMNS) - 2}
    assert "- skipped: direct/push (fresh 8, fresh 16 SMs): no push here" in lines


def test_rich_prints_whole_cells_on_a_narrow_terminal(run: Run) -> None:
    out = io.StringIO()
    print_rich(build_page(run), Console(width=60, file=out))
    text = out.getvalue()
    assert "PREDICTED" in text
    assert "nccl_like/selection" in text
    assert "vs selection" in text
    assert "…" not in text


def test_incomplete_run_says_so(run: Run) -> None:
    heading = build_page(msgspec.structs.replace(run, complete=False)).heading
    assert any("INCOMPLETE" in line for line in heading)
    assert not any("INCOMPLETE" in line for line in build_page(run).heading)


def measured(run: Run, kernel: str, variant: str, **changes: object) -> Case:
    """Return a measured pair of a kernel, with nothing that caps it."""
    case = next(case for case in run.cases if case.op == "pair" and case.status == "passed")
    fields = {"device": "cpu", "fidelity": "measured", "fabric": "uncapped", "sim": None}
    no_bounds = {"bound_own_us": None, "bound_best_us": None, "efficiency": None}
    names = {"kernel": kernel, "variant": variant}
    return msgspec.structs.replace(case, **{**fields, **no_bounds, **names, **changes})


def test_measured_rows_stand_beside_their_memcpy(run: Run) -> None:
    run.cases = [
        measured(
            run, "direct", "pull", time_us=100.0, samples_us=[100.0], memcpy_samples_us=[80.0]
        ),
        measured(run, "mpi", "dedup", time_us=600.0, samples_us=[600.0], memcpy_samples_us=[160.0]),
    ]
    run.ranks = [Rank(rank=rank, local_rank=rank, node_rank=0, device="cpu 0") for rank in range(3)]
    run.environment = msgspec.structs.replace(run.environment, mpi="Some MPI", num_cpus=2)
    page = build_page(run)
    (block,) = page.blocks
    ours = dict(zip(COLUMNS, block.rows[0], strict=True))
    assert (ours["of memcpy"], ours["vs dedup"]) == ("80", "6.00")
    assert "bound_own" not in [COLUMNS[i] for i in block.columns]
    assert any("3 ranks on 2 cores" in line and "waiting" in line for line in page.heading)
    assert "nvlink" not in [COLUMNS[i] for i in block.columns]
    assert any(line.startswith("of memcpy") for line in page.heading)
    assert not any(line.startswith("bound_own") for line in page.heading)
