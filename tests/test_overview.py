"""The overview: every kernel in each world at its best SMs and at those asked for."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from conftest import timed

from bench.cases import blank_case
from bench.cli import cli, main
from bench.expand import expand
from bench.grid import Grid
from bench.pages.overview import NAMES, build_overview
from bench.pages.render import plain
from bench.pages.tables import Table
from bench.records.record import Case, Check, Op, Run, encode_run

WORLD, KERNEL, SMS = (NAMES.index(name) for name in ("world", "kernel/variant", "sms"))


def row(table: Table, kernel: str, sms: str, world: str = "EP8 (1 x 8)") -> dict[str, str]:
    """Return the cells of one row by their column; of the two `eff` the second."""
    (found,) = [
        cells
        for cells in table.rows
        if (cells[WORLD], cells[KERNEL], cells[SMS]) == (world, kernel, sms)
    ]
    return dict(zip(NAMES, found, strict=True))


def shown(table: Table) -> list[tuple[str, str]]:
    """Return kernel and SMs of each row."""
    return [(cells[KERNEL], cells[SMS]) for cells in table.rows]


def changed(run: Run, kernel: str, num_sms: int, **changes: object) -> Run:
    """Return the run with fields replaced in the cases of `kernel/variant` at some SMs."""
    cases = [
        msgspec.structs.replace(case, **changes)
        if (f"{case.kernel}/{case.variant}", case.num_sms) == (kernel, num_sms)
        else case
        for case in run.cases
    ]
    return msgspec.structs.replace(run, cases=cases)


def with_cases(run: Run, cases: Sequence[Case], run_id: str = "another") -> Run:
    """Return another run, of these cases."""
    return msgspec.structs.replace(run, cases=list(cases), run_id=run_id)


def test_each_kernel_stands_at_its_best_and_at_the_sms_asked_for(run: Run) -> None:
    run = changed(run, "direct/pull", 16, time_us=90.0)
    (table,) = build_overview([run], [8]).tables
    assert shown(table) == [
        ("direct/pull", "16*"),
        ("direct/pull", "8"),
        ("direct/push", "8*"),
        ("nccl_like/selection", "8*"),
        ("nccl_like/dedup", "8*"),
    ]
    (table,) = build_overview([run], [16, 8, 24]).tables
    assert shown(table)[:4] == [
        ("direct/pull", "16*"),
        ("direct/pull", "8"),
        ("direct/push", "8*"),
        ("direct/push", "16"),
    ]


def test_numbers_of_a_row(run: Run) -> None:
    (table,) = build_overview([run], []).tables
    found = row(table, "direct/pull", "8*")
    # `fake_run_spec` takes 108, 208 and 308 us; the bounds are 80 and 64 us.
    assert (found["dispatch"], found["combine"], found["pair"]) == ("108", "208", "308")
    first, second = (i for i, name in enumerate(NAMES) if name == "eff")
    assert (table.rows[0][first], table.rows[0][second]) == ("74.1", "38.5")
    assert (found["of own"], found["of best"]) == (f"{8000 / 308:.1f}", f"{6400 / 308:.1f}")
    assert found["#wrong"] == "0"
    assert row(table, "direct/push", "8*")["combine"] == "-"


def test_unchecked_pair_is_not_called_right(run: Run) -> None:
    run = changed(run, "direct/pull", 8, check=Check(num_wrong=0, num_checked=0))
    (table,) = build_overview([run], []).tables
    assert row(table, "direct/pull", "8*")["#wrong"] == "N/A"


def test_speed_ups_are_over_the_fastest_row_of_each_baseline(run: Run) -> None:
    run = changed(run, "direct/pull", 8, time_us=100.0, bound_own_us=80.0)
    run = changed(run, "nccl_like/dedup", 8, time_us=300.0)
    run = changed(run, "nccl_like/dedup", 16, time_us=150.0)
    run = changed(run, "nccl_like/selection", 8, time_us=500.0)
    run = changed(run, "nccl_like/selection", 16, time_us=600.0)
    run.cases = [
        msgspec.structs.replace(case, bound_own_us=200.0) if case.variant == "selection" else case
        for case in run.cases
    ]
    (table,) = build_overview([run], [8]).tables
    ours = row(table, "direct/pull", "8*")
    assert ours["vs dedup"] == "1.50 = 1.00 x 1.50"
    # 500 / 100 in all, of which 200 / 80 are bytes.
    assert ours["vs selection"] == "5.00 = 2.50 x 2.00"
    assert row(table, "nccl_like/dedup", "16*")["vs dedup"] == "1.00 = 1.00 x 1.00"
    assert row(table, "nccl_like/dedup", "8")["vs dedup"] == "0.50 = 1.00 x 0.50"
    assert row(table, "nccl_like/selection", "8*")["vs selection"] == "1.00 = 1.00 x 1.00"


def test_factors_multiply_to_the_speed_up(run: Run) -> None:
    run.cases = [
        msgspec.structs.replace(case, bound_own_us=217.0) if case.variant == "selection" else case
        for case in run.cases
    ]
    (table,) = build_overview([run], [8, 16]).tables
    for cells in table.rows:
        text = cells[NAMES.index("vs selection")]
        total, by_bytes, efficiency = (float(x) for x in re.split(" = | x ", text))
        # Each is rounded to a hundredth.
        assert by_bytes * efficiency == pytest.approx(total, abs=0.005 * (1 + total + by_bytes))


def test_baselines_are_those_of_the_same_world(run: Run) -> None:
    wider = [
        msgspec.structs.replace(case, nodes=2, world_size=16, time_us=1000.0)
        for case in run.cases
        if case.kernel == "direct" and case.op == "pair"
    ]
    (table,) = build_overview([run, with_cases(run, wider)], []).tables
    alone = row(table, "direct/pull", "8*", "EP16 (2 x 8)")
    assert (alone["pair"], alone["vs dedup"], alone["vs selection"]) == ("1000", "-", "-")
    assert row(table, "direct/pull", "8*")["vs dedup"] == "1.00 = 1.00 x 1.00"


def test_without_bounds_a_speed_up_has_no_factors(run: Run) -> None:
    run.cases = [
        msgspec.structs.replace(case, bound_own_us=None, bound_best_us=None, efficiency=None)
        for case in run.cases
    ]
    (table,) = build_overview([run], []).tables
    ours = row(table, "direct/pull", "8*")
    assert (ours["vs selection"], ours["of own"], ours["of best"]) == ("1.00", "-", "-")


def test_refusals_are_notes_with_their_worlds(run: Run) -> None:
    refused = [
        blank_case(spec, op, "skipped", reason="no rail here", impl="numba", granularity="rank")
        for spec in expand([Grid(kernel=("direct/pull",), nodes=(2, 4), num_sms=(8, 16))])
        for op in ("dispatch", "pair")
    ]
    (table,) = build_overview([run, with_cases(run, refused)], []).tables
    assert table.notes == (
        "skipped: direct/push (EP8): no push here",
        "skipped: direct/pull (EP16, EP32): no rail here",
    )
    assert {cells[WORLD] for cells in table.rows} == {"EP8 (1 x 8)"}


def test_a_wrong_row_is_a_note_and_no_rival(run: Run) -> None:
    run = changed(run, "nccl_like/dedup", 8, time_us=1.0, status="incorrect", reason="a wrong row")
    (table,) = build_overview([run], [8]).tables
    assert [sms for kernel, sms in shown(table) if kernel == "nccl_like/dedup"] == ["16*"]
    assert row(table, "nccl_like/dedup", "16*")["vs dedup"] == "1.00 = 1.00 x 1.00"
    assert "incorrect: nccl_like/dedup (EP8): a wrong row" in table.notes


def test_turned_knobs_ends_of_ranges_and_cached_runs_are_left_out(run: Run) -> None:
    base = next(case for case in run.cases if case.variant == "pull" and case.op == "pair")
    others = [
        msgspec.structs.replace(base, time_us=1.0, turned=["warps"], knobs={"warps": 4}),
        msgspec.structs.replace(base, time_us=2.0, sm_copy="low"),
        msgspec.structs.replace(base, time_us=3.0, sm_copy="high"),
        msgspec.structs.replace(base, time_us=4.0, form="cached"),
        msgspec.structs.replace(base, time_us=None, sm_copy="low", status="error", reason="broken"),
    ]
    plain_run = build_overview([run], [16]).tables
    assert build_overview([run, with_cases(run, others)], [16]).tables == plain_run
    assert build_overview([with_cases(run, others)], [8]).tables == ()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", 7, "uniform seed 7"),
        ("num_tokens", 128, "128 tokens per rank"),
        ("dispatch_dtype", "bf16", "bf16 + bf16"),
        ("masked_ratio", 0.25, "masked 0.25"),
        ("skew_us", 5.0, "skew 5 us"),
        ("cross_rail", "forbidden", "cross-rail forbidden"),
        ("num_experts", 64, "64 experts"),
        ("fidelity", "paced", "PACED"),
        ("fabric", "h100", "h100"),
    ],
)
def test_runs_of_another_setting_never_share_a_table(
    run: Run, field: str, value: object, told: str
) -> None:
    other = [msgspec.structs.replace(case, **{field: value}) for case in run.cases]
    page = build_overview([run, with_cases(run, other)], [8, 16])
    first, second = page.tables
    assert len(first.rows) == len(second.rows) == 8
    assert told in second.title
    assert told not in first.title


def test_several_files_become_one_table_and_are_named(run: Run) -> None:
    ours = with_cases(run, [case for case in run.cases if case.kernel == "direct"], "first")
    theirs = with_cases(run, [case for case in run.cases if case.kernel != "direct"], "second")
    theirs.complete = False
    page = build_overview([ours, theirs], [8])
    assert page.tables == build_overview([run], [8]).tables
    assert page.footer == (
        f"Runs: first of {run.start_time}, second of {run.start_time}, INCOMPLETE.",
    )


def test_runs_of_other_constants_never_share_a_table(run: Run) -> None:
    kernels = [case for case in run.cases if case.kernel == "direct"]
    other = msgspec.structs.replace(with_cases(run, kernels), machine_id="sim-11111111")
    (alone,) = build_overview([run], [8]).tables
    first, second = build_overview([run, other], [8]).tables
    assert first.rows == alone.rows
    assert first.title == f"{alone.title} | sim-00000000"
    assert second.title == f"{alone.title} | sim-11111111"
    assert row(second, "direct/pull", "8*")["vs dedup"] == "-"


def test_a_run_of_nothing_has_no_table(run: Run) -> None:
    page = build_overview([with_cases(run, [], "none")], [8])
    assert page.tables == ()
    assert [line for line in plain(page).splitlines() if not line.startswith("#")] == []


def test_a_kernel_without_pairs_has_no_row(run: Run) -> None:
    only: tuple[Op, ...] = ("dispatch", "combine")
    cases = [case for case in run.cases if case.op in only]
    (table,) = build_overview([with_cases(run, cases)], [8]).tables
    assert table.rows == ()


def test_sms_asked_for_at_which_only_a_half_passed_have_no_row(run: Run) -> None:
    run.cases = [
        msgspec.structs.replace(case, status="incorrect", reason="a wrong row")
        if (case.variant, case.num_sms, case.op) == ("pull", 16, "pair")
        else case
        for case in run.cases
    ]
    (table,) = build_overview([run], [8, 16]).tables
    assert [sms for kernel, sms in shown(table) if kernel == "direct/pull"] == ["8*"]
    assert "incorrect: direct/pull (EP8): a wrong row" in table.notes


def test_measured_runs_are_compared_with_their_own_baseline(run: Run) -> None:
    names = {"direct": "direct", "nccl_like": "mpi"}
    measured = [
        msgspec.structs.replace(
            timed(case, 50.0 if case.kernel == "direct" else 125.0),
            kernel=names[case.kernel],
            device="cpu",
            fidelity="measured",
            fabric="uncapped",
        )
        for case in run.cases
        if case.op == "pair"
    ]
    clock = msgspec.structs.replace(with_cases(run, measured), machine_id="cpu-00000000")
    page = build_overview([run, clock], [])
    predicted, clocked = page.tables
    assert row(clocked, "direct/pull", "8*")["vs dedup"] == "2.50 = 1.00 x 2.50"
    assert "device cpu" in clocked.title
    assert "cpu-00000000" not in clocked.title
    assert "uncapped" not in clocked.title
    assert row(predicted, "direct/pull", "8*")["vs dedup"] == "1.00 = 1.00 x 1.00"
    assert [line.partition(":")[0] for line in page.heading[:2]] == ["MEASURED", "PREDICTED"]


# The command


@pytest.fixture
def files(run: Run, in_tmp: Path) -> tuple[str, str]:
    """Write two runs."""
    names = ("a.json", "b.json")
    for name in names:
        part = [case for case in run.cases if (case.kernel == "direct") == (name == "a.json")]
        Path(name).write_bytes(encode_run(with_cases(run, part, name)))
    return names


def test_command_prints_one_table_of_all_files(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(cli, ["show", "--overview", "8,16", *files])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 8
    assert len([line for line in lines if line.startswith("#world")]) == 1
    assert any("a.json of" in line and "b.json of" in line for line in lines)


def test_command_prints_markdown(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(cli, ["show", "--markdown", "--overview", "8,16", *files])
    assert done.exit_code == 0
    tables = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(tables) == 2 + 8
    assert {line.count("|") for line in tables} == {len(NAMES) + 1}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("--overview 8", "FILES..."),
        ("--overview 8 none.json", "cannot read none.json"),
        ("--overview 8,x a.json", "'x' is not a valid"),
        ("--overview 0 a.json", "0 is not in the range x>=1"),
        ("a.json --overview", "requires an argument"),
    ],
)
def test_command_refuses_in_one_sentence(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], args: str, told: str
) -> None:
    assert main(["show", *args.split()]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
