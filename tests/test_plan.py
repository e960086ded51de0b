"""Counts of a routing against counting token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.traffic.plan import Plan
from bench.workloads.gate import Gate
from bench.workloads.routing import Routing, generate, parse_routing
from comms.errors import UsageError
from kernels.shape import Shape


def _shape(num_nodes: int, ranks_per_node: int, num_experts: int, num_topk: int) -> Shape:
    return Shape(num_nodes, ranks_per_node, 64, 128, num_experts, num_topk, num_sms=1)


def _routing(*topk_idx: list[list[int]], num_topk: int = 2) -> Routing:
    idx = [np.array(rank, np.int32).reshape(-1, num_topk) for rank in topk_idx]
    return Routing(idx, [(each >= 0).astype(np.float32) for each in idx])


def test_counts_by_hand() -> None:
    # 2 nodes x 2 ranks, 2 experts a rank.
    routing = _routing([[0, 1], [1, 2]], [[4, 6], [-1, 7]], [[-1, -1]], [])
    plan = Plan.of(routing, _shape(2, 2, 8, 2))
    assert plan.num_tokens.tolist() == [2, 2, 1, 0]
    assert plan.selections.tolist() == [[3, 1, 0, 0], [0, 0, 1, 2], [0] * 4, [0] * 4]
    assert plan.copies.tolist() == [[2, 1, 0, 0], [0, 0, 1, 2], [0] * 4, [0] * 4]
    assert plan.node_copies.tolist() == [[2, 0], [0, 2], [0, 0], [0, 0]]
    assert plan.world_size == 4
    assert {plan.copies.dtype, plan.selections.dtype, plan.node_copies.dtype} == {
        np.dtype(np.int64)
    }


@settings(max_examples=60, deadline=None)
@given(
    num_nodes=st.integers(1, 4),
    ranks_per_node=st.integers(1, 4),
    num_experts=st.integers(1, 40),
    num_topk=st.integers(1, 6),
    num_tokens=st.integers(0, 12),
    masked_ratio=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_counts_are_those_of_the_tokens(
    num_nodes: int,
    ranks_per_node: int,
    num_experts: int,
    num_topk: int,
    num_tokens: int,
    masked_ratio: float,
) -> None:
    num_topk = min(num_topk, num_experts)
    shape = _shape(num_nodes, ranks_per_node, num_experts, num_topk)
    size = shape.world_size
    gate = Gate(size, num_tokens, num_experts, num_topk, masked_ratio=masked_ratio)
    routing = generate(parse_routing("uniform"), gate)
    plan = Plan.of(routing, shape)
    selections, copies = np.zeros((size, size), int), np.zeros((size, size), int)
    node_copies = np.zeros((size, num_nodes), int)
    for rank, topk_idx in enumerate(routing.topk_idx):
        for token in topk_idx.tolist():
            owners = [expert // shape.experts_per_rank for expert in token if expert >= 0]
            for owner in owners:
                selections[rank, owner] += 1
            for owner in set(owners):
                copies[rank, owner] += 1
            for node in {owner // ranks_per_node for owner in owners}:
                node_copies[rank, node] += 1
    assert np.array_equal(plan.selections, selections)
    assert np.array_equal(plan.copies, copies)
    assert np.array_equal(plan.node_copies, node_copies)


def test_a_routing_of_another_world_is_refused() -> None:
    with pytest.raises(UsageError, match="routing has 1 ranks, the shape has 4"):
        Plan.of(_routing([[0, 1]]), _shape(2, 2, 8, 2))


@pytest.mark.parametrize("expert", [-2, 8])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    with pytest.raises(UsageError, match="rank 1 must be -1 or below num_experts 8"):
        Plan.of(_routing([], [[0, expert]], [], []), _shape(2, 2, 8, 2))
