"""Stored results: pages show what files hold, and files hold what kernels take now."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.records.record import Case
from bench.records.store import read_run
from bench.validation.prediction import read_predictions
from bench.validation.question import Question
from bench.validation.simulated import simulate

_ROOT = Path(__file__).parents[1]
_REFERENCE = _ROOT / "results/reference"
_FAMILY = [_REFERENCE / "family-ep64.json", _REFERENCE / "family.json"]


def _rows(text: str) -> list[str]:
    """Return the lines of a page that are rows of a table about a world."""
    return [line for line in text.splitlines() if line.startswith("| EP")]


def test_the_page_of_the_family_shows_its_files() -> None:
    asked = ["show", "--overview", "8,20", "--markdown", *map(str, _FAMILY)]
    result = CliRunner().invoke(cli, asked, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    page = (_ROOT / "results/family.md").read_text()
    assert result.output.strip() in page
    assert len(_rows(page)) > 40


def test_the_readme_shows_rows_of_the_family() -> None:
    readme = (_ROOT / "README.md").read_text()
    first_table = _rows(readme.partition("## ")[0])
    assert len(first_table) > 10
    assert set(first_table) <= set(_rows((_ROOT / "results/family.md").read_text()))


@pytest.mark.parametrize(
    ("name", "kernel", "nodes", "num_sms"),
    [
        ("h800.json", "direct/push", 2, 16),
        ("family.json", "two_hop/rail", 2, 20),
        ("family.json", "ring/chunked", 1, 24),
    ],
)
@pytest.mark.slow
def test_a_reference_holds_what_its_kernels_take(
    name: str, kernel: str, nodes: int, num_sms: int
) -> None:
    grid = Grid(kernel=(kernel,), nodes=(nodes,), num_sms=(num_sms,))
    (spec,) = expand([grid])
    stored: dict[str, Case] = {case.case_id: case for case in read_run(_REFERENCE / name).cases}
    for row in run_spec(spec, lambda *_: None):
        assert row.status == "passed", row.reason
        kept = stored[row.case_id]
        for field in ("time_us", "bound_own_us", "bound_best_us", "gbs", "bytes"):
            assert getattr(kept, field) == getattr(row, field), (row.case_id, field)


@pytest.mark.slow
def test_a_stored_prediction_is_what_its_kernels_take() -> None:
    question = Question(gpu="h800", kernel="ring_two_hop", nodes=2)
    stored = read_predictions(_REFERENCE / "validation/two_hop.json").cases
    answers = simulate(question, ["dispatch", "combine"])
    found = {op: answer.time_us for op, answer in answers.items()}
    assert found == {case.op: case.time_us for case in stored if case.nodes == 2}
