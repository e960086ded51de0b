"""The NCCL baselines and `two_hop/staged` by NCCL, bit for bit over a fake between MPI ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_cases import CASES, KernelCase
from nccl_on_cpu import PROTOCOLS
from test_cpu_kernels import on_cpu

from bench.cases import CaseSpec
from bench.expand import expand
from bench.ranks.job import Dispatcher
from bench.ranks.request import Request
from bench.records.record import Case, Form
from bench.timing import Timing
from bench.tuning.runs import grid_of

_FILE = os.path.relpath(Path(__file__).parent / "nccl_on_cpu.py")
_KERNEL = f"{_FILE}:PROTOCOLS"
_WRONG = "any_numbers"
#: What is awkward for an exchange: messages of nothing, of one rank, masked, of uneven ranks.
_NAMES = (
    "no tokens",
    "1 token",
    "2 ranks",
    "7 tokens of 3 ranks",
    "2x3 ranks",
    "3x1 ranks",
    "hot rank",
    "hot rank of 2x2",
    "power law",
    "full rows of 100",
    "top-22 of 512",
    "60 experts on 8 ranks",
    "masked",
    "all masked",
    "ranks without tokens",
    "matrix",
    "matrix on 2x2",
    "fp8 tail group on 2x2",
)
_VARIANTS = tuple(protocol.variant for protocol in PROTOCOLS)
_TIMING = Timing(num_iters=0, timeout_s=60.0)
Key = tuple[str, int, str, Form]


def _points() -> Iterator[Key]:
    for turn, name in enumerate(_NAMES):
        (nodes,) = CASES[name].grid.nodes
        world_size = 3 if nodes == 3 or name == "7 tokens of 3 ranks" else 4
        for place, variant in enumerate(_VARIANTS):
            forms = CASES[name].forms
            yield name, world_size, variant, forms[(turn + place) % len(forms)]
    yield from (("masked", 4, variant, "fresh") for variant in _VARIANTS)
    yield from (("masked", 4, variant, "cached") for variant in _VARIANTS)


POINTS = list(dict.fromkeys(_points()))


def _spec(key: Key, folder: Path) -> CaseSpec:
    name, world_size, variant, form = key
    case = CASES[name].where_it_runs("two_hop") if variant == "staged" else CASES[name]
    moved = KernelCase(on_cpu(case.grid, world_size), case.forms, case.write_routing)
    return moved.spec(_KERNEL, variant, form, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the routing files of all points."""
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def rows_of(request: pytest.FixtureRequest, folder: Path) -> dict[Key, list[Case]]:
    """Run the points that were collected."""
    points = [
        item.callspec.params["key"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_right_by_nccl"
    ]
    specs_of = {key: _spec(key, folder) for key in points}
    grids = [grid_of(spec) for spec in specs_of.values()]
    specs = expand(grids)
    runner = Dispatcher(specs, lambda *parent: Request(grids, _TIMING, *parent), lambda *_: None)
    found = {spec.case_id("pair"): runner(spec, lambda *_: None) for spec in specs}
    runner.close(early=False)
    return {key: found[spec.case_id("pair")] for key, spec in specs_of.items()}


@pytest.mark.parametrize("key", POINTS, ids=lambda key: "-".join(map(str, key)))
def test_right_by_nccl(key: Key, rows_of: dict[Key, list[Case]], folder: Path) -> None:
    name, _, variant, _ = key
    spec = _spec(key, folder)
    for row in rows_of[key]:
        reason = None
        if variant == "copy_engine" and spec.nodes > 1:
            reason = "one node only"
        elif variant == "staged" and spec.nodes == 1:
            reason = "one node needs one hop"
        if reason is not None:
            assert (row.status, reason in str(row.reason)) == ("skipped", True), row
        elif variant == _WRONG and row.op != "dispatch":
            # A check that nothing could fail would show nothing.
            assert row.status in ("passed", "incorrect"), row.reason
        else:
            assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op


def test_sums_of_the_librarys_own_are_told_from_the_oracles(
    rows_of: dict[Key, list[Case]],
) -> None:
    wrong = [
        row
        for (name, _, variant, _), rows in rows_of.items()
        for row in rows
        if variant == _WRONG and name == "masked" and row.op != "dispatch"
    ]
    assert wrong
    assert all(row.status == "incorrect" for row in wrong)
    assert all("combine to rank" in str(row.reason) for row in wrong)
