"""The SMs' constants are where their fit ends, and stored residuals are what it leaves."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.fitting import closed_form as closed_fit
from bench.fitting import sm
from bench.fitting.published import read_rows
from bench.fitting.sm import (
    LOW_LATENCY,
    RINGS,
    SEVERAL_NODES,
    STAGES,
    KeptTrials,
    Stage,
    Trials,
    is_fixed_point,
    read_kept,
)
from bench.fitting.tried import NOISE, START, STEPS, Constants, committed, descend, neighbours
from bench.validation import closed_form
from bench.validation.calibration import read_points
from bench.validation.prediction import read_predictions
from bench.validation.question import WAYS
from comms.fabric import load_fabric

VALIDATION = Path(__file__).parents[1] / "results" / "reference" / "validation" / "rows.json"


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials([*RINGS.points(), *LOW_LATENCY.points()])


def test_rows_have_their_sources_and_are_all_used() -> None:
    rows = read_rows()
    assert len(rows) == 14
    assert all(row.source for row in rows)
    published = {way.published for way in WAYS.values()} | {"ncclAlltoAll"}
    assert {row.kernel for row in rows} == published
    fixed = [point.row for stage in STAGES for point in stage.points()]
    assert sorted(row.label for row in fixed) == sorted(
        row.label for row in rows if row.kernel != "ncclAlltoAll"
    )


def test_rates_become_times_of_our_bytes() -> None:
    point = next(each for each in read_points() if each.row.metric == "logical_nvlink_gbs")
    traffic = closed_form.count(point.question, point.op)
    # 4096 tokens of a rank reach 5.296 of 8 ranks each, in rows of 7392 B (fabric facts, 2.2).
    assert traffic.logical_nvlink == pytest.approx(5.296 * 4096 * 7392, rel=2e-3)
    assert point.published_us(traffic) == pytest.approx(traffic.logical_nvlink / 153e3)


@pytest.mark.parametrize("stage", STAGES)
def test_committed_constants_are_where_the_fit_ends(stage: Stage) -> None:
    assert is_fixed_point(KeptTrials(stage), stage, committed())


@pytest.mark.parametrize(
    ("stage", "name", "num_steps"),
    [(RINGS, "copy_gbs", 1), (SEVERAL_NODES, "nic_gbs", -1)],
)
def test_the_fit_does_not_end_beside_it(stage: Stage, name: str, num_steps: int) -> None:
    kept = KeptTrials(stage)
    beside = replace(
        committed(), **{name: getattr(committed(), name) + num_steps * getattr(STEPS, name)}
    )
    # The committed constants are one step from these.
    assert kept.rms(committed()) < kept.rms(beside) - NOISE


@pytest.mark.slow
def test_the_fit_of_launches_does_not_end_beside_it(trials: Trials) -> None:
    beside = replace(committed(), fixed_us=committed().fixed_us + 4 * STEPS.fixed_us)
    assert not is_fixed_point(trials.among(LOW_LATENCY), LOW_LATENCY, beside)


def test_kept_times_are_those_of_the_committed_constants_and_one_step_beside() -> None:
    wanted = [
        (point.row.label, tried)
        for stage in STAGES
        for tried in (committed(), *neighbours(committed(), stage.names))
        for point in stage.points()
    ]
    assert [(one.row, one.tried) for one in read_kept()] == wanted


@pytest.mark.slow
def test_kept_times_are_what_the_simulator_gives(trials: Trials) -> None:
    rings, low_latency = KeptTrials(RINGS), KeptTrials(LOW_LATENCY)
    for kept in (rings, low_latency):
        for point in kept.points:
            found = trials.times_us(point, committed())
            assert found == pytest.approx(kept.times_us(point, committed()), rel=1e-9)
    # Rows that depend on no step beside are many; one that does is simulated with it.
    (few_sms,) = {point.question for point in rings.points if point.question.spec().num_sms == 8}
    beside = replace(committed(), copy_gbs=committed().copy_gbs + STEPS.copy_gbs)
    point = next(point for point in rings.points if point.question == few_sms)
    found = trials.times_us(point, beside)
    assert found == pytest.approx(rings.times_us(point, beside), rel=1e-9)
    assert found[0] < trials.times_us(point, committed())[0]


def test_stored_times_are_what_the_simulator_gives(trials: Trials) -> None:
    stored = {
        (case.gpu, case.kernel, case.op, case.world_size, case.num_sms): case
        for case in read_predictions(VALIDATION).cases
    }
    assert len(stored) == len(read_points())
    for point in trials.points:
        question = point.question
        key = (question.gpu, question.kernel, point.op, 8, question.spec().num_sms)
        simulated, published = trials.times_us(point, committed())
        row = stored[key].published
        assert row is not None
        assert stored[key].time_us == pytest.approx(simulated, rel=1e-9)
        assert row.time_us == pytest.approx(published, rel=1e-9)
        assert row.residual_pct == pytest.approx(100 * (simulated / published - 1), abs=1e-6)


def test_constants_are_as_good_where_residuals_differ_by_noise() -> None:
    class Bowl(Trials):
        def objective(self, tried: Constants) -> float:
            return len(self.points) * (0.01 + 3 * abs(tried.nic_gbs - 47) ** 2 * NOISE) ** 2

    bowl = Bowl(SEVERAL_NODES.points())
    best = replace(START, nic_gbs=47.0)
    assert sm.are_as_good([bowl], replace(best, nic_gbs=47.5), best)
    assert not sm.are_as_good([bowl], replace(best, nic_gbs=48.0), best)
    assert is_fixed_point(bowl, SEVERAL_NODES, replace(best, nic_gbs=47.5))
    assert not is_fixed_point(bowl, SEVERAL_NODES, replace(best, nic_gbs=48.5))


def test_descent_ends_in_the_least_of_a_bowl_and_below_nothing() -> None:
    def bowl(tried: Constants) -> float:
        return (tried.copy_gbs - 41) ** 2 + (tried.ack_bytes - 3) ** 2

    found = descend(bowl, START, RINGS.names)
    assert (found.copy_gbs, found.ack_bytes) == (41, 3)
    sinking = descend(lambda tried: tried.ack_bytes, START, RINGS.names)
    assert sinking.ack_bytes == 0
    assert math.isclose(sinking.copy_gbs, START.copy_gbs)


def test_constants_stand_in_the_profiles_of_their_generation() -> None:
    for gpu in ("h100", "h800", "h200", "h20"):
        fabric = load_fabric(gpu)
        ours = committed().fabric(gpu)
        assert fabric.sm == ours.sm
        assert fabric.nic == ours.nic
        for constant in (
            fabric.sm.ldst.copy_gbs,
            fabric.sm.write_ack_bytes,
            fabric.nic.payload_gbs,
        ):
            assert constant.source.startswith("fitted to")
            assert constant.low is not None
            assert constant.high is not None
            assert constant.low <= constant.value <= constant.high


@pytest.mark.slow
def test_times_of_several_nodes_are_those_that_were_kept() -> None:
    points = [each for each in SEVERAL_NODES.points() if each.question.kernel == "low_latency"]
    kept, trials = KeptTrials(SEVERAL_NODES), Trials(points)
    for point in points:
        found = trials.times_us(point, committed())
        assert found == pytest.approx(kept.times_us(point, committed()), rel=1e-9)


def test_closed_form_is_the_fitted_one_and_others_are_not() -> None:
    rows = closed_fit.count_points()
    fitted = closed_fit.fit(rows)
    assert fitted == closed_form.committed()
    assert fitted.num_parameters == 7

    def objective(parameters: closed_form.Parameters) -> float:
        return sum(row.log_ratio(parameters) ** 2 for row in rows)

    least = objective(fitted)
    for factor in (0.98, 1.02):
        others = [msgspec.structs.replace(fitted, nic_gbs=factor * fitted.nic_gbs)]
        for gpu, rate in fitted.nvlink_gbs.items():
            rates = {**fitted.nvlink_gbs, gpu: factor * rate}
            others.append(msgspec.structs.replace(fitted, nvlink_gbs=rates))
        assert all(objective(other) > least for other in others)


@pytest.mark.parametrize(("worse", "code"), [(-0.01, 0), (0.0, 0), (0.9 * NOISE, 0), (0.01, 1)])
def test_check_fails_where_the_fit_finds_better_ones(
    monkeypatch: pytest.MonkeyPatch, worse: float, code: int
) -> None:
    found = replace(committed(), nic_gbs=committed().nic_gbs + 1)
    monkeypatch.setattr(sm, "descend", lambda *_: found)
    monkeypatch.setattr(
        sm.Trials, "rms", lambda _, tried: 0.02 + (worse if tried == committed() else 0)
    )
    monkeypatch.setattr(sm, "table", lambda *_: "")
    assert CliRunner().invoke(sm.main, ["--check"]).exit_code == code
    assert CliRunner().invoke(sm.main, []).exit_code == 0
