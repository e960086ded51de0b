"""Every kernel is bitwise right in real memory at 2, 3 and 4 ranks, or refuses: one launch."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

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


_PRESETS = {name: _whole_rows(case) for name, case in preset_cases().items()}
_ALL = {**CASES, **_PRESETS}
#: Left on one node and on one SM, for the kernels that refuse these; all other cases are moved to
#: where a kernel runs.
_AS_IT_IS = "7 tokens of 3 ranks"
#: Kernels that every run is compared with. What is awkward about a shape meets the same packing in
#: all of their variants, so they take turns in the forms; the first of them stands for the others
#: in smaller worlds.
_BASELINES = [(kernel, variant) for kernel, variant in protocols("cpu") if kernel == "mpi"]
_MODELS = [(kernel, variant) for kernel, variant in protocols("cpu") if kernel == "nccl_like"]
_LARGEST_ONLY = (*_BASELINES[1:], *_MODELS)


def _case_of(name: str, kernel: str) -> KernelCase:
    return _ALL[name] if name == _AS_IT_IS else _ALL[name].where_it_runs(kernel)


def _points_of(turn: int, name: str) -> Iterator[Key]:
    """Return the runs of a case: in the largest world, and of ours the other form in a smaller one.

    Args:
        turn: number of the case; neighbours take turns in smaller worlds and forms.
        name: the case.
    """
    case = _ALL[name]
    for world_size in reversed(WORLD_SIZES):
        for kernel, variant in protocols("cpu"):
            (nodes,) = _case_of(name, kernel).grid.nodes
            *smaller, largest = [size for size in WORLD_SIZES if size % nodes == 0]
            # A preset is about rows, and a matrix of bytes for as many ranks as it has rows.
            if name in _PRESETS or case.write_routing is write_matrix:
                smaller.clear()
            if (kernel, variant) in _LARGEST_ONLY:
                smaller.clear()
            is_ours = (kernel, variant) not in (*_BASELINES, *_MODELS)
            turned, other = (case.forms[(turn + step) % len(case.forms)] for step in range(2))
            if world_size == largest:
                forms = case.forms if is_ours and not smaller else (turned,)
                yield from ((name, world_size, kernel, variant, form) for form in forms)
            elif smaller and world_size == smaller[turn // 2 % len(smaller)]:
                yield (name, world_size, kernel, variant, other)


POINTS = [point for turn, name in enumerate(_ALL) for point in _points_of(turn, name)]


def _spec(key: Key, folder: Path) -> CaseSpec:
    name, world_size, kernel, variant, form = key
    case = _case_of(name, kernel)
    most_sms = 2 if kernel in IN_PAIRS else 3
    moved = KernelCase(on_cpu(case.grid, world_size, most_sms), case.forms, case.write_routing)
    return moved.spec(kernel, variant, form, folder)


class _Results:
    """Cases of the points that were collected, from ranks that go on while tests look."""

    def __init__(self, points: list[Key], folder: Path) -> None:
        self._specs_of = {key: _spec(key, folder) for key in points}
        grids = [grid_of(spec) for spec in self._specs_of.values()]
        expected = [spec.case_id("pair") for spec in self._specs_of.values()]
        specs = expand(grids)
        assert [spec.case_id("pair") for spec in specs] == list(dict.fromkeys(expected))
        self._specs = specs
        self._found: dict[str, list[Case]] = {}
        self._runner = Dispatcher(
            specs, lambda *parent: Request(grids, _TIMING, *parent), lambda *_: None
        )

    def of(self, key: Key, folder: Path) -> tuple[CaseSpec, list[Case]]:
        """Return the spec and the cases of a point."""
        spec = self._specs_of[key]
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


def test_every_kernel_meets_every_case_in_every_form_and_world() -> None:
    for kernel, variant in protocols("cpu"):
        own = [key for key in POINTS if key[2:4] == (kernel, variant)]
        met = {(name, form) for name, _, _, _, form in own}
        assert {name for name, _ in met} == set(_ALL)
        assert {form for _, form in met} == {"fresh", "cached"}
        if kernel not in ("mpi", "nccl_like"):
            assert met == {(name, form) for name, case in _ALL.items() for form in case.forms}
        sizes = WORLD_SIZES if (kernel, variant) not in _LARGEST_ONLY else WORLD_SIZES[1:]
        assert {key[1] for key in own} == set(sizes)
        if kernel not in ("mpi", "nccl_like"):
            assert {(key[1], key[4]) for key in own} == set(product(sizes, get_args(Form)))


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
