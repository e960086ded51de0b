"""`epbench validate`: what it asks the simulator, what it counts, what it refuses."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from conftest import timed

from bench.cases import blank_case
from bench.cli import main
from bench.expand import expand
from bench.fitting.published import read_rows
from bench.grid import Grid
from bench.pages import render
from bench.records.record import Case, Source
from bench.traffic.plan import Plan
from bench.validation import closed_form
from bench.validation.calibration import Point, find_point, read_points
from bench.validation.moved import moved
from bench.validation.page import sheet, summary
from bench.validation.prediction import Prediction, Predictions, Published, read_predictions
from bench.validation.question import Question, low_latency_sms, parse_groups, v1_constants
from bench.validation.report import PAGE, PREDICTED, ROWS, filled
from bench.validation.simulated import simulate
from bench.validation.traffic import traffic_of
from comms.errors import UsageError, WrongResults
from comms.fabric import load_fabric

SMALL = ["--tokens", "16", "--hidden", "512"]


def run(tmp_path: Path, *flags: str) -> list[dict[str, object]]:
    path = tmp_path / "predictions.json"
    assert main(["validate", *flags, "--json", str(path)]) == 0
    assert read_predictions(path).complete
    cases: list[dict[str, object]] = json.loads(path.read_text())["cases"]
    return cases


def test_every_combination_is_a_case_for_each_operation(tmp_path: Path) -> None:
    cases = run(tmp_path, "--gpu", "h100,h800", *SMALL, "--num-sms", "4,8", "--topk", "4")
    found = [(case["gpu"], case["num_sms"], case["op"]) for case in cases]
    ops = ("dispatch", "combine")
    assert found == [(gpu, sms, op) for gpu in ("h100", "h800") for sms in (4, 8) for op in ops]
    for case in cases:
        assert (case["kernel"], case["form"], case["groups"]) == ("ring", "cached", None)
        assert (case["num_topk"], case["hidden"], case["num_tokens"]) == (4, 512, 16)
        assert case["logical_rdma_gbs"] is None
        assert case["published"] is None
        times = [case[name] for name in ("time_us", "closed_form_us", "bound_us")]
        assert all(isinstance(value, float) and value > 0 for value in times)


def test_a_link_is_followed_and_a_pipe_is_written_once(tmp_path: Path) -> None:
    link, target, pipe = (tmp_path / name for name in ("link", "target", "pipe"))
    link.symlink_to(target)
    flags = ["validate", *SMALL, "--num-sms", "2,4", "--op", "dispatch", "--json"]
    assert main([*flags, str(link)]) == 0
    assert link.is_symlink()
    assert len(read_predictions(target).cases) == 2
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main([*flags, str(pipe)]) == 0
    assert len(json.loads(os.read(reader, 1 << 16))["cases"]) == 2
    os.close(reader)


def test_a_grouped_routing_reaches_fewer_nodes(tmp_path: Path) -> None:
    flags = ["--kernel", "low_latency", "--nodes", "2", *SMALL, "--op", "dispatch"]
    (free,) = run(tmp_path, *flags)
    (grouped,) = run(tmp_path, *flags, "--groups", "1")
    assert (free["groups"], grouped["groups"]) == (None, "1 of 2")
    assert free["num_sms"] == 128
    assert free["rdma_gbs"] != grouped["rdma_gbs"]
    assert isinstance(free["logical_rdma_gbs"], float)
    assert free["logical_rdma_gbs"] == free["logical_nvlink_gbs"]


def test_low_latency_adds_its_constant_and_rates_follow() -> None:
    question = Question("h800", "low_latency", num_tokens=16, hidden=512)
    fixed_us = v1_constants().low_latency.fixed_us.value
    bare = simulate(question, ["dispatch"], fixed_us=0.0)["dispatch"]
    whole = simulate(question, ["dispatch"])["dispatch"]
    assert whole.time_us == pytest.approx(bare.time_us + fixed_us)
    # 8 selections of a token, rows of 512 B, 4 scales and V1's header.
    assert whole.traffic.logical_nvlink == 16 * 8 * (512 + 16 + 16)


def test_bytes_are_counted_as_v1_counts_them() -> None:
    question = Question("h800", "ring_two_hop", nodes=2, num_tokens=32, groups=(2, 2))
    spec = question.spec()
    plan = Plan.of(spec.workload.topk(16, 8), spec.shape())
    traffic = traffic_of(question, "combine", plan, spec.shape())
    assert traffic.logical_nvlink == plan.copies.sum() / 16 * 14336
    assert traffic.logical_rdma == plan.node_copies.sum() / 16 * 14336
    assert traffic.rdma < traffic.logical_rdma
    assert traffic.lane_bytes == traffic.logical_nvlink / 12


def test_closed_form_is_the_slowest_port_and_the_fixed_time() -> None:
    parameters = closed_form.Parameters({"ring": 5.0}, {"h800": 100.0}, 50.0, 5.0)
    question = Question("h800", "ring", num_tokens=64, num_sms=24)
    traffic = closed_form.count(question, "dispatch")
    lane_us = traffic.lane_bytes / 5e3
    assert lane_us > traffic.nvlink / 100e3
    assert parameters.time_us(question, traffic) == pytest.approx(5 + lane_us)
    faster = msgspec.structs.replace(parameters, lane_gbs=1000.0)
    assert faster.time_us(question, traffic) == pytest.approx(5 + traffic.nvlink / 100e3)


def test_questions_of_published_rows_have_their_sizes() -> None:
    points = read_points()
    assert len(points) == sum(row.kernel.startswith("V1") for row in read_rows())
    two_hop = next(point for point in points if point.question.kernel == "ring_two_hop")
    spec = two_hop.question.spec()
    assert (spec.world_size, spec.num_sms, spec.workload.routing) == (64, 24, "groups")
    assert (spec.workload.num_topk_groups, spec.workload.num_groups) == (4, 8)


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_that_constants_are_fitted_to_are_found_by_their_sizes(seed: int) -> None:
    found = [
        find_point(replace(point.question, form="cached", seed=seed), point.op)
        if point.question.kernel == "ring"
        else find_point(replace(point.question, num_sms=None, num_tokens=None), point.op)
        for point in read_points()
    ]
    assert found == list(read_points())


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_sms": 12}, {"gpu": "h800"}, {"num_tokens": 4095}, {"form": "fresh"}),
        *({"groups": (4, 8)}, {"hidden": 4096}, {"num_topk": 4}, {"num_experts": 64}),
    ],
    ids=str,
)
def test_other_configurations_are_no_fitted_rows(changes: dict[str, object]) -> None:
    question = Question("h100", "ring", num_sms=8)
    assert find_point(question, "dispatch") is not None
    assert find_point(replace(question, **changes), "dispatch") is None  # type: ignore[arg-type]


def test_a_fitted_row_that_is_asked_for_has_its_residual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Question("h100", "ring", num_tokens=16, hidden=512, num_sms=4)
    row = replace(read_points()[0].row, metric="time_us", value=1.0)
    points = (Point(row, small, "dispatch"),)
    monkeypatch.setattr("bench.validation.calibration.read_points", lambda: points)
    dispatch, combine = run(tmp_path, "--gpu", "h100", *SMALL, "--num-sms", "4")
    assert isinstance(dispatch["published"], dict)
    assert isinstance(dispatch["time_us"], float)
    assert dispatch["published"]["residual_pct"] == pytest.approx(100 * (dispatch["time_us"] - 1))
    assert combine["published"] is None
    fitted, predicted = capsys.readouterr().out.split("# Predicted\n")
    assert "# Published rows, which the constants are fitted to\n" in fitted
    assert " dispatch " in fitted
    assert " combine " in predicted


@pytest.mark.parametrize(
    ("text", "nodes", "groups"), [("4 of 8", 1, (4, 8)), ("2", 4, (2, 4)), ("4", 4, (4, 4))]
)
def test_groups(text: str, nodes: int, groups: tuple[int, int]) -> None:
    assert parse_groups(text, nodes) == groups


@pytest.mark.parametrize("text", ["", "of", "x", "5 of 4", "0 of 4", "5", "4 of", "-1"])
def test_other_groups_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="groups must be M of N"):
        parse_groups(text, 4)


def test_blocks_of_low_latency_have_whole_experts() -> None:
    num_sms = load_fabric("h800").num_sms
    assert [low_latency_sms(experts, num_sms) for experts in (64, 256, 288)] == [64, 128, 96]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num-sms", "7"], "num_sms must be even"),
        (["--num-sms", "134"], "num_sms must be at most the 132 SMs"),
        (["--kernel", "ring", "--nodes", "2"], "one node only"),
        (["--topk", "300"], "num_topk must be at most num_experts"),
        (["--groups", "9 of 8"], "groups must be M of N"),
        (["--groups", "1 of 7", *SMALL], "does not divide into 7 groups"),
        (["--gpu", "h900"], "h900"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sentence in said.err


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ('"schema": "epbench-run", "schema_version": "1.0.0"', "schema is 'epbench-run', not"),
        (
            '"schema": "epbench-validation", "schema_version": "2.0.0"',
            "2.0.0 is not readable by 1.",
        ),
        ('"schema": "epbench-validation"', "missing required field `schema_version`"),
    ],
)
def test_a_file_of_something_else_is_refused(header: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(f'{{{header}, "command": "", "cases": []}}')
    with pytest.raises(UsageError, match="not a file of epbench validate: ") as caught:
        read_predictions(path)
    assert told in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_predictions(tmp_path / "none.json")


def _published(residual: float, closed: float) -> Published:
    return Published(
        source="",
        metric="time_us",
        value=1.0,
        time_us=1.0,
        residual_pct=residual,
        closed_form_residual_pct=closed,
    )


@pytest.mark.parametrize(
    ("residuals", "words"),
    [
        ([(1.0, 4.0), (-1.0, 3.0)], "in 2 rows and is nearer over all"),
        ([(5.0, 1.0), (0.5, -1.0)], "in 1 rows and does no better than the closed form over all"),
    ],
)
def test_summary_says_which_model_is_nearer(
    residuals: list[tuple[float, float]], words: str
) -> None:
    (line,) = summary([_published(*pair) for pair in residuals])
    assert words in line
    assert f"simulator {math.hypot(*(pair[0] for pair in residuals)) / 2**0.5:.1f} %" in line


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted after 1 of 2 configurations"),
        (WrongResults("a row is wrong"), 7, "a row is wrong"),
    ],
)
@pytest.mark.parametrize("to_file", [True, False])
def test_what_was_predicted_is_kept_whatever_ends_it(
    error: BaseException,
    code: int,
    sentence: str,
    to_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop_at_4(question: Question, *args: object, **more: object) -> object:
        if question.num_sms == 4:
            raise error
        return simulate(question, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.validation.simulated.simulate", stop_at_4)
    path = tmp_path / "predictions.json"
    flags = [*SMALL, "--num-sms", "2,4", *(["--json", str(path)] if to_file else [])]
    assert main(["validate", *flags]) == code
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"epbench: {sentence}" + (
        f"; predicted so far: {path}" if to_file else ""
    )
    assert "beside a closed form, INCOMPLETE\n" in said.out
    assert said.out.count(" ring/chunked ") == 2
    assert path.exists() == to_file
    if to_file:
        kept = read_predictions(path)
        assert [case.num_sms for case in kept.cases] == [2, 2]
        assert kept.complete is False


def test_an_older_file_stays_where_nothing_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "predictions.json"
    path.write_bytes(b"before")
    monkeypatch.setattr("bench.validation.simulated.simulate", stop)
    assert main(["validate", *SMALL, "--json", str(path)]) == 130
    said = capsys.readouterr()
    assert "interrupted after 0 of 1 configurations; nothing was predicted so far" in said.err
    assert said.out == ""
    assert path.read_bytes() == b"before"


def test_files_that_do_not_say_whether_they_are_complete_are_read(tmp_path: Path) -> None:
    stored = json.loads(ROWS.read_text())
    stored.pop("complete", None)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({**stored, "schema_version": "1.0.0"}))
    found = read_predictions(path)
    assert found.cases == read_predictions(ROWS).cases
    assert found.complete is None
    assert "INCOMPLETE" not in render.plain(sheet(found))


def test_page_shows_both_models_beside_what_was_published(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    assert main(["validate", *SMALL, "--op", "dispatch", "--json", str(path)]) == 0
    (case,) = read_predictions(path).cases
    known: Prediction = msgspec.structs.replace(case, published=_published(1.0, -4.0))
    text = render.plain(sheet(Predictions(command="", cases=[known, case], skipped=["why"])))
    assert "+1.0" in text
    assert "-4.0" in text
    assert "Published rows" in text
    assert "# Predicted\n" in text
    assert "Skipped: why" in text


def test_the_page_has_the_tables_that_its_files_make() -> None:
    text = PAGE.read_text()
    assert filled(text) == text
    assert filled(text.replace("+0.9 %", "+0.1 %")) == text
    tables = re.findall(r"<!-- table: (\w+) -->\n\| ", text)
    assert tables == [
        *("constants", "closed_form", "rows", "two_hop", "low_latency", "h100_sms", "moved")
    ]


def test_the_page_gives_the_commands_of_its_files() -> None:
    text = PAGE.read_text()
    for path in (ROWS, *PREDICTED.values()):
        assert f"    {read_predictions(path).command}\n" in text


def test_a_table_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no table 'other'"):
        filled("<!-- table: other -->\n<!-- end -->\n")


def _pair(kernel: str, time_us: float) -> Case:
    (spec,) = expand([Grid(kernel=(kernel,), tokens=(16,), ranks_per_node=(2,))])
    blank = blank_case(
        spec, "pair", "skipped", reason="not timed", impl="numba", granularity="rank"
    )
    return timed(blank, time_us)


def test_moved_pairs_what_was_run_before_and_after() -> None:
    before = _pair("direct/pull", 100.0)
    low = msgspec.structs.replace(before, sm_copy="low")
    other = msgspec.structs.replace(before, num_sms=4)
    after = msgspec.structs.replace(before, time_us=110.0)
    (row,) = moved([low, before, other], [low, after])
    assert (row.kernel, row.before_us, row.after_us) == ("direct/pull", 100.0, 110.0)


@pytest.mark.parametrize(
    "changes",
    [
        *({"kernel": "mine"}, {"variant": "push"}, {"form": "cached"}, {"device": "cpu"}),
        *({"fidelity": "paced"}, {"fabric": "h100"}, {"cross_rail": "forbidden"}),
        *({"nodes": 2}, {"world_size": 4}, {"preset": "kimi-k2"}, {"num_tokens": 32}),
        *({"hidden": 512}, {"num_experts": 64}, {"num_topk": 4}, {"dispatch_dtype": "bf16"}),
        *({"combine_dtype": "fp8"}, {"routing": "zipf"}, {"masked_ratio": 0.5}, {"seed": 1}),
        *({"num_sms": 4}, {"skew_us": 1.0}, {"prefix": None}),
        {"source": Source("mine.py", "mine", "0")},
        {"turned": ["pull_warps"], "knobs": {"pull_warps": 4}},
    ],
    ids=str,
)
def test_moved_pairs_no_other_case(changes: dict[str, object]) -> None:
    before = _pair("direct/pull", 100.0)
    assert len(moved([before], [before])) == 1
    assert moved([before], [msgspec.structs.replace(before, **changes)]) == []
