"""Every kernel is bitwise right in real memory at 2, 3 and 4 ranks, or refuses: one launch."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from kernel_cases import (
    CASES,
    IN_PAIRS,
    KernelCase,
    preset_cases,
    protocols,
    refusal,
    write_matrix,
)

from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import Grid
from bench.ranks.job import Dispatcher
from bench.ranks.request import Request
from bench.records.record import Case, Form
from bench.timing import Timing
from bench.tuning.runs import grid_of

WORLD_SIZES = (2, 3, 4)
#: Of a row, as much as the simulator's tests move.
_HIDDEN = 192
_TIMING = Timing(num_iters=0, timeout_s=60.0)

Key = tuple[str, int, str, str, Form]


def on_cpu(grid: Grid, world_size: int, most_sms: int = 3) -> Grid:
    """Return the axes of a case for a world of processes: its nodes where they divide it."""
    nodes = max(nodes for nodes in (1, *grid.nodes) if world_size % nodes == 0)
    hidden = grid.hidden
    if hidden is None and grid.prefix is not None:
        hidden = _HIDDEN
    return msgspec.structs.replace(
        grid,
        device="cpu",
        fabric=("uncapped",),
        nodes=(nodes,),
        ranks_per_node=(world_size // nodes,),
        hidden=hidden,
        num_sms=(min(*grid.num_sms, most_sms),),
        skew_us=0.0,
        prefix=None,
    )


def _whole_rows(case: KernelCase) -> KernelCase:
    return KernelCase(msgspec.structs.replace(case.grid, prefix=None, tokens=(16,)), case.forms)


_ALL = {**CASES, **{name: _whole_rows(case) for name, case in preset_cases().items()}}
POINTS: list[Key] = [
    (name, world_size, kernel, variant, form)
    for name, case in _ALL.items()
    for world_size in WORLD_SIZES
    for kernel, variant in protocols("cpu")
    for form in case.forms
    # The model of NCCL stands for no library here: its largest world is enough.
    if kernel != "nccl_like" or world_size == max(WORLD_SIZES)
    # A matrix of bytes is for as many ranks as it has rows.
    if case.write_routing is not write_matrix or world_size == 4
]


def _spec(key: Key, folder: Path) -> CaseSpec:
    name, world_size, kernel, variant, form = key
    case = _ALL[name] if name in CASES else _ALL[name].where_it_runs(kernel)
    most_sms = 2 if kernel in IN_PAIRS else 3
    moved = KernelCase(on_cpu(case.grid, world_size, most_sms), case.forms, case.write_routing)
    return moved.spec(kernel, variant, form, folder)


class _Results:
    """Cases of the points that were collected, from ranks that go on while tests look."""

    def __init__(self, points: list[Key], folder: Path) -> None:
        grids, self._order = [], []
        for key in points:
            spec = _spec(key, folder)
            grids.append(grid_of(spec))
            self._order.append((key, spec))
        expected = [spec.case_id("pair") for _, spec in self._order]
        specs = expand(grids)
        assert [spec.case_id("pair") for spec in specs] == list(dict.fromkeys(expected))
        self._specs = specs
        self._found: dict[str, list[Case]] = {}
        self._runner = Dispatcher(
            specs, lambda *parent: Request(grids, _TIMING, *parent), lambda *_: None
        )

    def of(self, key: Key, folder: Path) -> tuple[CaseSpec, list[Case]]:
        """Return the spec and the cases of a point."""
        spec = next(spec for other, spec in self._order if other == key)
        while spec.case_id("pair") not in self._found:
            done = self._specs[len(self._found)]
            self._found[done.case_id("pair")] = self._runner(done, lambda *_: None)
        return spec, self._found[spec.case_id("pair")]

    def close(self) -> None:
        """End the ranks."""
        self._runner.close(early=len(self._found) < len(self._specs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the routing files of all points."""
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, folder: Path) -> Iterator[_Results]:
    """Run the points that were collected."""
    points = [
        item.callspec.params["key"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_right_or_refused_over_mpi"
    ]
    found = _Results(points, folder)
    yield found
    found.close()


@pytest.mark.parametrize("key", POINTS, ids=lambda key: "-".join(map(str, key)))
def test_right_or_refused_over_mpi(key: Key, results: _Results, folder: Path) -> None:
    spec, rows = results.of(key, folder)
    assert [row.op for row in rows] == ["dispatch", "combine", "pair"]
    for row in rows:
        reason = refusal(spec, row.op)
        if reason is None:
            assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op
            assert row.fidelity == "measured"
            assert row.time_us is not None
            assert row.time_us > 0
        else:
            assert row.status == "skipped", row.op
            assert reason in str(row.reason)
