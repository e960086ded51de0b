"""`two_hop/staged` with a mistake put into it: what is told from the oracle, on device `cpu`."""

import os
from pathlib import Path

import msgspec
import pytest
from kernel_cases import KernelCase

from bench.expand import expand
from bench.grid import Grid
from bench.harness import refusal_of
from bench.ranks.job import Dispatcher
from bench.ranks.request import Request
from bench.records.record import Case
from bench.timing import Timing
from bench.tuning.runs import grid_of
from kernels.two_hop.staged import STAGED

_STAGED = Path(__file__).parent.parent / "kernels" / "two_hop" / "staged"
_TIMING = Timing(num_iters=0, timeout_s=60.0)
_WORLD = Grid(
    device="cpu",
    fabric=("uncapped",),
    prefix=None,
    nodes=(2,),
    ranks_per_node=(2,),
    tokens=(24,),
    hidden=192,
    num_sms=(2,),
)
_ITEMS = "    items = items_of(p)\n"
#: Mistakes by name: the module, what is replaced there, what by, and which operation is wrong.
MISTAKES = {
    "ends_early": (
        "forward",
        {
            "isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)": "isa.load(p.done)",
            # One rank is late with its rows.
            _ITEMS: f"    if p.rank == 1:\n        isa.pause(300000000)\n{_ITEMS}",
        },
        "dispatch",
    ),
    "near_sums": ("combine", {"(items.near_begin + item)": "item"}, "combine"),
    "first_block": (
        "pack",
        {"p.counts_bytes), sm, begins, cursor": "p.counts_bytes), 0, begins, cursor"},
        "dispatch",
    ),
    "first_rank": ("forward", {"first_rank + local, place)": "first_rank, place)"}, "dispatch"),
}
#: The file of the mutants, each a variant with the kernels of a module beside it.
_FILE = """
import importlib
from dataclasses import replace

from kernels.two_hop.staged import STAGED


def mutant(name):
    module = importlib.import_module(name)

    def launches(op, form):
        return tuple(
            replace(each, kernel=getattr(module, each.name))
            if hasattr(each, "kernel") and each.name in vars(module)
            else each
            for each in STAGED.launches(op, form)
        )

    return replace(STAGED, kernel="mutant", variant=name, devices=("cpu",), launches=launches)


MUTANTS = tuple(mutant(name) for name in NAMES)
"""


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Case]]:
    """Run every mutant."""
    folder = tmp_path_factory.mktemp("mutants")
    for name, (module, edits, _) in MISTAKES.items():
        text = (_STAGED / f"{module}.py").read_text()
        for old, new in edits.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / f"{name}.py").write_text(text)
    imports = "".join(f"import {name}\n" for name in MISTAKES)
    path = folder / "mutants.py"
    path.write_text(f"{imports}NAMES = {tuple(MISTAKES)}\n{_FILE}")
    kernel = f"{os.path.relpath(path)}:MUTANTS"
    specs = [KernelCase(_WORLD).spec(kernel, name, "fresh", folder) for name in MISTAKES]
    grids = [grid_of(spec) for spec in specs]
    specs = expand(grids)
    runner = Dispatcher(specs, lambda *parent: Request(grids, _TIMING, *parent), lambda *_: None)
    rows = {spec.variant: runner(spec, lambda *_: None) for spec in specs}
    runner.close(early=False)
    return rows


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed(name: str, rows_of: dict[str, list[Case]]) -> None:
    op = MISTAKES[name][2]
    (row,) = [row for row in rows_of[name] if row.op == op]
    assert row.status == "incorrect", row.reason
    assert f"{op} to rank" in str(row.reason)


def test_one_node_needs_one_hop_and_sim_has_no_library() -> None:
    (on_sim,) = expand([Grid(kernel=("two_hop/staged",), nodes=(2,))])
    assert refusal_of(on_sim, STAGED, "pair") == "runs on device cpu or cuda only"
    (alone,) = expand([msgspec.structs.replace(_WORLD, nodes=(1,), kernel=("two_hop/staged",))])
    assert "use direct" in str(refusal_of(alone, STAGED, "pair"))


def test_a_kernels_name_stands_for_what_the_device_has() -> None:
    def found(kernel: str, device: str) -> list[str]:
        grid = Grid() if device == "sim" else _WORLD
        specs = expand([msgspec.structs.replace(grid, kernel=(kernel,))])
        return [spec.variant for spec in specs]

    assert found("two_hop", "sim") == ["rail"]
    assert found("two_hop", "cpu") == ["rail", "staged"]
    # What the device has not at all says so.
    assert len(found("nccl", "cpu")) == 6
