"""What a machine with GPUs runs: every kernel on ranks that share one, bit for bit.

`pytest tests/test_gpu.py` on such a machine; each case runs in this process, on the first GPU.
"""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from kernel_cases import ACROSS_NODES, CASES, IN_PAIRS, KernelCase, own_kernels, refusal
from test_cpu_kernels import on_cpu

from bench.cases import CaseSpec
from bench.harness import run_spec
from bench.measured import Team
from bench.ranks.rank import take_card
from bench.records.record import Case, Form, Impl
from bench.timing import Timing
from comms.cuda.cards import visible_cards
from comms.cuda.kept_nccl import KeptNccl
from comms.errors import RuntimeFailure
from comms.fabric import ONE_CARD
from comms.mpi.alone import alone
from comms.mpi.control import Control

pytestmark = pytest.mark.gpu
_TIMING = Timing(num_iters=2, num_warmup=0, timeout_s=20.0)
_OURS = own_kernels()
#: Blocks of a rank where 8 ranks share a GPU.
_MOST_SMS = 8
_WORLD_SIZES = {2, 3, 4, 6, 8}

Key = tuple[str, str, str, Impl, Form]
POINTS: list[Key] = [
    (name, kernel, variant, impl, form)
    for name, case in CASES.items()
    for kernel, variant, impl in _OURS
    for form in case.forms
]


def spec_of(key: Key, folder: Path) -> CaseSpec:
    """Return a case as ranks that share a GPU run it, whole rows of few elements."""
    name, kernel, variant, impl, form = key
    case = CASES[name].where_it_runs(kernel)
    # A lone rank of a kernel that needs two nodes becomes one on each.
    world_size = case.grid.nodes[0] * max(case.grid.ranks_per_node[0], 1)
    most_sms = _MOST_SMS if kernel in IN_PAIRS else _MOST_SMS - 1
    moved = msgspec.structs.replace(
        on_cpu(case.grid, world_size, most_sms), device="cuda", fabric=(ONE_CARD,)
    )
    return KernelCase(moved, case.forms, case.write_routing).spec(
        kernel, variant, form, folder, impl
    )


@pytest.fixture(scope="module")
def team() -> Team:
    """Be the only process of a world, on the first GPU."""
    try:
        visible_cards()
    except RuntimeFailure as failure:
        pytest.skip(str(failure))
    ranks = alone()
    nccl = KeptNccl(ranks, _TIMING.timeout_s)
    card = take_card(ranks)
    return Team(ranks, Control(ranks), _TIMING, lambda *_: None, card, nccl)


@pytest.mark.parametrize("key", POINTS, ids=lambda key: "-".join(key))
def test_right_or_refused_on_one_card(key: Key, team: Team, tmp_path: Path) -> None:
    spec = spec_of(key, tmp_path)
    check(spec, run_spec(spec, lambda *_: None, team))


def check(spec: CaseSpec, rows: list[Case]) -> None:
    """Check that all rows are right, or refused as they should be."""
    assert [row.op for row in rows] == ["dispatch", "combine", "pair"]
    for row in rows:
        reason = refusal(spec, row.op)
        if reason is not None:
            assert row.status == "skipped", row.op
            assert reason in str(row.reason)
            continue
        assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op
        assert (row.fidelity, row.fabric) == ("measured", ONE_CARD)
        assert len(row.samples_us) == _TIMING.num_iters


@pytest.mark.parametrize(("kernel", "variant", "impl"), _OURS)
def test_right_when_replayed_from_a_graph(
    kernel: str, variant: str, impl: Impl, team: Team, tmp_path: Path
) -> None:
    name = "2x3 ranks" if kernel in ACROSS_NODES else "2 ranks"
    spec = spec_of((name, kernel, variant, impl, "fresh"), tmp_path)
    timing = msgspec.structs.replace(_TIMING, graph=True)
    check(spec, run_spec(spec, lambda *_: None, replace(team, timing=timing)))


@pytest.mark.parametrize(("kernel", "variant", "impl"), _OURS)
def test_right_on_new_data_each_time(
    kernel: str, variant: str, impl: Impl, team: Team, tmp_path: Path
) -> None:
    name = "2x3 ranks" if kernel in ACROSS_NODES else "2 ranks"
    spec = spec_of((name, kernel, variant, impl, "cached"), tmp_path)
    timing = msgspec.structs.replace(_TIMING, num_iters=20, check="each")
    rows = run_spec(spec, lambda *_: None, replace(team, timing=timing))
    assert [row.status for row in rows if refusal(spec, row.op) is None] == ["passed"] * sum(
        refusal(spec, row.op) is None for row in rows
    )
