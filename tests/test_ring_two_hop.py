"""`ring_two_hop` at its smallest rings, what it refuses, and what each wait and credit is for."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from kernel_cases import KernelCase
from mutants import Mutation, install_mutant

from bench import harness
from bench.grid import Grid
from bench.records.record import Form
from kernels.ring_two_hop import PROTOCOLS
from kernels.ring_two_hop.knobs import KNOBS
from kernels.shape import Shape

(RAIL,) = PROTOCOLS
_DISPATCH, _COMBINE = "kernels.ring_two_hop.dispatch", "kernels.ring_two_hop.combine"
_NOTIFY = "kernels.ring_two_hop.notify"
#: Two rows in each ring of two nodes, one in each chunk: nothing less is legal.
SMALLEST = {
    "dispatch_nvl_send": 1,
    "dispatch_nvl_recv": 2,
    "dispatch_rdma_send": 1,
    "dispatch_rdma_recv": 2,
    "combine_nvl_send": 1,
    "combine_nvl_recv": 4,
    "combine_rdma_send": 1,
    "combine_rdma_recv": 2,
}
#: Chunks that divide no count of rows, in the smallest rings that take them.
UNEVEN = {
    "dispatch_nvl_send": 4,
    "dispatch_nvl_recv": 5,
    "dispatch_rdma_send": 3,
    "dispatch_rdma_recv": 6,
    "combine_nvl_send": 4,
    "combine_nvl_recv": 15,
    "combine_rdma_send": 4,
    "combine_rdma_recv": 8,
}


def _turned(knobs: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in knobs.items())


@pytest.mark.parametrize(
    ("grid", "form"),
    [
        pytest.param(
            Grid(
                tokens=(70,),
                nodes=(2,),
                ranks_per_node=(2,),
                num_sms=(4,),
                knob=_turned(SMALLEST),
            ),
            "fresh",
            id="one row in a chunk",
        ),
        pytest.param(
            Grid(
                tokens=(40,),
                nodes=(3,),
                ranks_per_node=(2,),
                num_sms=(2,),
                routing=("hot:3",),
                knob=_turned({**SMALLEST, "combine_nvl_recv": 6}),
            ),
            "cached",
            id="one row in a chunk, a hot rank",
        ),
        pytest.param(
            Grid(
                tokens=(50,),
                nodes=(3,),
                ranks_per_node=(3,),
                num_sms=(2,),
                skew_us=40.0,
                knob=_turned(UNEVEN),
            ),
            "fresh",
            id="uneven chunks, skewed",
        ),
    ],
)
def test_right_at_the_smallest_rings(grid: Grid, form: Form, tmp_path: Path) -> None:
    spec = KernelCase(grid).spec(RAIL.kernel, RAIL.variant, form, tmp_path)
    for row in harness.run_spec(spec, lambda *_: None):
        assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op


def _shape(num_nodes: int = 2, ranks_per_node: int = 8, num_sms: int = 20, **knobs: int) -> Shape:
    return Shape(
        num_nodes=num_nodes,
        ranks_per_node=ranks_per_node,
        num_tokens=16,
        hidden=7168,
        num_experts=256,
        num_topk=8,
        num_sms=num_sms,
        knobs=tuple(knobs.items()),
    )


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (_shape(num_nodes=1), "use ring"),
        (_shape(num_sms=7), "num_sms must be even, got 7"),
        (_shape(ranks_per_node=9), "got 9 ranks per node"),
        (_shape(num_nodes=25, ranks_per_node=1), "got 25 nodes"),
        (_shape(dispatch_rdma_send=7, dispatch_rdma_recv=128), "got 128 and 7"),
        (_shape(combine_rdma_send=8, combine_rdma_recv=8), "got 8 and 8"),
        (_shape(dispatch_nvl_send=288), "got 288 and 288"),
        (_shape(combine_nvl_send=0), "at least 1"),
        (_shape(combine_nvl_recv=289), "multiple of the 2 nodes, got 4 and 289"),
        (_shape(combine_nvl_recv=24), "got 24 for chunks of 12"),
    ],
)
def test_refused_with_its_values(shape: Shape, reason: str) -> None:
    assert reason in str(RAIL.refuses(shape, "combine", cross_rail="spine"))


@pytest.mark.parametrize("num_nodes", range(2, 25))
@pytest.mark.parametrize("ranks_per_node", range(1, 9))
def test_the_table_is_legal_everywhere(num_nodes: int, ranks_per_node: int) -> None:
    assert RAIL.refuses(_shape(num_nodes, ranks_per_node), "combine", cross_rail="spine") is None


def test_the_table_is_the_published_one() -> None:
    values = {knob.name: knob.of(_shape()) for knob in KNOBS}
    assert list(values.values()) == [36, 288, 20, 140, 4, 288, 12, 132]
    wider = {knob.name: knob.of(_shape(num_nodes=8)) for knob in KNOBS}
    assert list(wider.values()) == [32, 288, 8, 128, 1, 288, 8, 128]


def _helper(module: str, old: str, new: str) -> Mutation:
    """Return a mutation of a role's module."""
    kernel = _DISPATCH if module.startswith("dispatch") else _COMBINE
    return Mutation(f"kernels.ring_two_hop.{module}", old, new, kernel=kernel)


@pytest.mark.parametrize(
    ("mutation", "op", "status", "reason"),
    [
        pytest.param(
            Mutation(
                _NOTIFY,
                "isa.wait_all(p.relayed, 8, p.ranks_per_node, epoch * p.num_nodes)",
                "pass",
            ),
            "dispatch",
            "incorrect",
            "dispatch to rank",
            id="counts read before they are here",
        ),
        pytest.param(
            _helper(
                "dispatch_senders", "isa.wait_ge(p.rdma_credit + 8 * credit, needed)", "needed"
            ),
            "dispatch",
            "timeout",
            "waits for nvl_tail",
            id="a send ring overwritten",
        ),
        pytest.param(
            _helper(
                "dispatch_forwarders",
                "        isa.put_signal(peer, credit, value, p.num_sms // 2 + channel_of())\n",
                "        pass\n",
            ),
            "dispatch",
            "timeout",
            "waits for rdma_credit",
            id="no credit for a source",
        ),
        pytest.param(
            _helper(
                "dispatch_receivers", "places + 8 * node, base + begin)", "places + 8 * node, base)"
            ),
            "dispatch",
            "incorrect",
            "dispatch to rank",
            id="every channel's rows in the first one's places",
        ),
        pytest.param(
            _helper(
                "combine_forwarders",
                "isa.wait_ge(p.back_nvl_tail + 8 * stream, place.base + end)",
                "place.base + end",
            ),
            "combine",
            "incorrect",
            "combine to rank",
            id="rows added before they are here",
        ),
        pytest.param(
            _helper(
                "combine_forwarders",
                "isa.store(first_rank + local, p.back_nvl_credit + 8 * theirs, value)",
                "pass",
            ),
            "combine",
            "timeout",
            "from back_nvl_credit",
            id="no credit for a sender",
        ),
        pytest.param(
            _helper(
                "combine_receivers",
                "isa.wait_ge(p.back_tail + 8 * stream, place.base + slot + 1)",
                "place.base + slot + 1",
            ),
            "combine",
            "incorrect",
            "combine to rank",
            id="sums added before they are here",
        ),
    ],
)
def test_a_mistake_is_noticed(
    mutation: Mutation,
    op: str,
    status: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install_mutant(RAIL, mutation, monkeypatch)
    grid = Grid(
        tokens=(70,),
        nodes=(2,),
        ranks_per_node=(2,),
        num_sms=(4,),
        skew_us=40.0,
        knob=_turned(SMALLEST),
    )
    spec = KernelCase(grid).spec(RAIL.kernel, RAIL.variant, "fresh", tmp_path)
    (row,) = [row for row in harness.run_spec(spec, lambda *_: None) if row.op == op]
    assert row.status == status, row.reason
    assert reason in str(row.reason)
