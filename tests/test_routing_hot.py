"""The hot routing: exact ratios wherever integers allow, refusals, volume and spread."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.traffic.plan import Plan
from bench.workloads.gate import Gate
from bench.workloads.routing import generate, parse_routing
from bench.workloads.routing_hot import hot_rows
from comms.errors import UsageError
from kernels.shape import Shape


def _plan(text: str, gate: Gate, num_nodes: int = 1) -> Plan:
    shape = Shape(
        num_nodes=num_nodes,
        ranks_per_node=gate.world_size // num_nodes,
        num_tokens=gate.num_tokens,
        hidden=128,
        num_experts=gate.num_experts,
        num_topk=gate.num_topk,
        num_sms=1,
    )
    return Plan.of(generate(parse_routing(text), gate), shape)


@settings(max_examples=60, deadline=None)
@given(
    world_size=st.integers(2, 12),
    num_tokens=st.integers(1, 40),
    num_experts=st.integers(2, 64),
    num_topk=st.integers(1, 12),
    ratio=st.fractions(1, 12, max_denominator=8).map(lambda f: round(float(f), 2)),
    seed=st.integers(0, 3),
)
def test_hot_ratio_is_exact_or_refused(
    world_size: int, num_tokens: int, num_experts: int, num_topk: int, ratio: float, seed: int
) -> None:
    gate = Gate(world_size, num_tokens, num_experts, min(num_topk, num_experts), seed=seed)
    asked = Fraction(str(ratio))
    try:
        plan = _plan(f"hot:{ratio}", gate)
    except UsageError:
        assert not _totals(gate, asked)
        return
    received = plan.copies.sum(axis=0)
    hot, others = int(received[0]), received[1 : gate.num_owners]
    assert not received[gate.num_owners :].any()
    assert others.min() > 0
    assert others.max() - others.min() <= 1
    assert abs(hot - _share(asked, int(received.sum()), len(others))) <= Fraction(1, 2)
    if any(_is_exact(asked, total, len(others)) for total in _totals(gate, asked)):
        assert hot == asked * int(others[0])
        assert others.max() == others.min()


def _share(ratio: Fraction, total: int, num_others: int) -> Fraction:
    return ratio * total / (ratio + num_others)


def _is_exact(ratio: Fraction, total: int, num_others: int) -> bool:
    cold = total / (ratio + num_others)
    return cold.denominator == 1 and (ratio * cold).denominator == 1


def _totals(gate: Gate, ratio: Fraction) -> list[int]:
    """Return the totals by which every rank gets rows, none more than there are tokens."""
    tokens, others = gate.world_size * gate.num_tokens, gate.num_owners - 1
    sizes = [
        min(gate.experts_per_rank, gate.num_experts - first)
        for first in range(0, gate.num_experts, gate.experts_per_rank)
    ]
    fewest = next(n for n in range(1, len(sizes) + 1) if sum(sorted(sizes)[:n]) >= gate.num_topk)
    most = min(gate.num_topk, len(sizes))
    return [
        total
        for total in range(tokens * fewest, tokens * most + 1)
        if others
        and _share(ratio, total, others) <= tokens
        and total - _share(ratio, total, others) >= others
    ]


def test_hot_keeps_uniform_volume_where_the_ratio_allows() -> None:
    rows = hot_rows(Gate(64, 256, 256, 8), Fraction(4))
    assert rows[0] == 4 * rows[1]
    assert rows.sum() / (64 * 256) == pytest.approx(7.676, abs=0.004)


@pytest.mark.parametrize(
    ("ratio", "rows"),
    [("1", [8, 8, 8, 8]), ("5", [20, 4, 4, 4]), ("3", [16, 6, 5, 5]), ("29", [29, 1, 1, 1])],
)
def test_rows_of_top_1_tokens(ratio: str, rows: list[int]) -> None:
    # Top-1 leaves no choice of the total: 32 tokens are 32 rows.
    gate = Gate(4, 8, 4, 1)
    assert hot_rows(gate, Fraction(ratio)).tolist() == rows
    assert _plan(f"hot:{ratio}", gate).copies.sum(axis=0).tolist() == rows


def test_destinations_are_spread_like_uniform_ones() -> None:
    # reference/fabric.md 2.2 gives 3.621 nodes of EP32 without a hot rank.
    plan = _plan("hot:1", Gate(32, 512, 256, 8), num_nodes=4)
    assert plan.node_copies.sum() / (32 * 512) == pytest.approx(3.621, rel=0.01)
    shares = plan.copies / plan.copies.sum(axis=0)
    assert np.abs(shares * 32 - 1).max() < 0.2


def test_every_selected_expert_may_be_first() -> None:
    routing = generate(parse_routing("hot:4"), Gate(8, 512, 64, 8))
    first = np.concatenate(routing.topk_idx)[:, 0] // 8
    everywhere = np.concatenate(routing.topk_idx) // 8
    share = (first == 0).mean() / (everywhere == 0).mean()
    assert share == pytest.approx(1, abs=0.06)
