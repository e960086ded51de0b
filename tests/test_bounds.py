"""Bytes per port against walking every token along its route; times against arithmetic by hand."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.traffic.bounds import (
    Flits,
    HalfOp,
    byte_totals,
    port_bytes,
)
from bench.traffic.plan import Plan
from bench.workloads.gate import Gate
from bench.workloads.routing import Routing, generate, parse_routing
from comms.fabric import load_fabric
from kernels.protocol import Granularity, Route
from kernels.shape import Shape

#: A row of 200 elements, whatever its prefix: 208 B of data and two scales padded to 32 B; as BF16.
FP8_ROW, BF16_ROW = 224, 416

#: Bytes from rank to rank by link, from whose sums ports follow.
Flows = Counter[tuple[str, int, int]]

H800 = load_fabric("h800")
REQUESTS = Flits(flit_bytes=16, packet_bytes=128)
ROUTES: tuple[Route, ...] = ("one_hop", "rail", "pxn")
GRANULARITIES: tuple[Granularity, ...] = ("rank", "selection")
OPS: tuple[HalfOp, ...] = ("dispatch", "combine")
COMBINATIONS = list(product(ROUTES, GRANULARITIES, OPS))


def _shape(num_nodes: int, ranks_per_node: int, num_experts: int, num_topk: int) -> Shape:
    return Shape(num_nodes, ranks_per_node, 64, 200, num_experts, num_topk, num_sms=1, prefix=64)


def _plan(shape: Shape, num_tokens: int, seed: int = 0) -> tuple[Routing, Plan]:
    gate = Gate(shape.world_size, num_tokens, shape.num_experts, shape.num_topk, seed=seed)
    routing = generate(parse_routing("uniform"), replace(gate, masked_ratio=0.2))
    return routing, Plan.of(routing, shape)


def _send(flows: Flows, shape: Shape, path: list[int], row_bytes: int) -> None:
    for src, dst in zip(path, path[1:], strict=False):
        if src != dst:
            same = src // shape.ranks_per_node == dst // shape.ranks_per_node
            flows["nvlink" if same else "nic", src, dst] += row_bytes


def _walk(
    routing: Routing, shape: Shape, route: Route, granularity: Granularity, op: HalfOp
) -> Flows:
    """Move every row on its own."""
    flows: Flows = Counter()
    per_node = shape.ranks_per_node
    whole, single = (
        (BF16_ROW, BF16_ROW) if op == "combine" else (FP8_ROW + 8 * shape.num_topk, FP8_ROW + 8)
    )
    row_bytes = whole if granularity == "rank" else single
    for src, topk_idx in enumerate(routing.topk_idx):
        for token in topk_idx.tolist():
            owners = [expert // shape.experts_per_rank for expert in token if expert >= 0]
            for dst in sorted(set(owners)) if granularity == "rank" else owners:
                ends = [src, dst] if op == "dispatch" else [dst, src]
                other_node = src // per_node != dst // per_node
                if route == "pxn" and other_node:
                    peer = ends[0] // per_node * per_node + ends[1] % per_node
                    ends.insert(1, peer)
                if route == "rail" and other_node:
                    rail = dst // per_node * per_node + src % per_node
                    ends = [rail, dst] if op == "dispatch" else [dst, rail]
                _send(flows, shape, ends, row_bytes)
            if route == "rail":
                for node in {owner // per_node for owner in owners} - {src // per_node}:
                    ends = [src, node * per_node + src % per_node]
                    _send(flows, shape, ends if op == "dispatch" else ends[::-1], whole)
    return flows


@settings(max_examples=40, deadline=None)
@given(
    num_nodes=st.integers(1, 4),
    ranks_per_node=st.integers(1, 4),
    num_experts=st.integers(4, 40),
    num_topk=st.integers(1, 4),
    num_tokens=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_ports_move_what_the_rows_do(
    num_nodes: int, ranks_per_node: int, num_experts: int, num_topk: int, num_tokens: int, seed: int
) -> None:
    shape = _shape(num_nodes, ranks_per_node, num_experts, num_topk)
    routing, plan = _plan(shape, num_tokens, seed)
    for route, granularity, op in COMBINATIONS:
        expected = {
            (link, side): np.zeros(shape.world_size, np.int64)
            for link in ("nvlink", "nic")
            for side in ("out", "in")
        }
        for (link, src, dst), num_bytes in _walk(routing, shape, route, granularity, op).items():
            expected[link, "out"][src] += num_bytes
            expected[link, "in"][dst] += num_bytes
        found = port_bytes(plan, shape, route=route, granularity=granularity, op=op)
        for (link, side), num_bytes_of_rank in expected.items():
            assert np.array_equal(getattr(found, f"{link}_{side}"), num_bytes_of_rank), (route, op)


def _one_token(*experts: int) -> tuple[Shape, Plan]:
    """Return rank 1 of 2 nodes x 4 ranks, one expert a rank, with one token."""
    shape = _shape(2, 4, 8, len(experts))
    none = np.zeros((0, len(experts)), np.int32)
    idx = [none, np.array([experts], np.int32), *[none] * 6]
    routing = Routing(idx, [np.ones(each.shape, np.float32) for each in idx])
    return shape, Plan.of(routing, shape)


def test_rail_by_hand() -> None:
    # To itself, its neighbour 0, the rail rank 5 of the other node, and 6 and 7 behind it.
    shape, plan = _one_token(1, 0, 5, 6, 7)
    row = FP8_ROW + 8 * 5
    dispatch = port_bytes(plan, shape, route="rail", granularity="rank", op="dispatch")
    assert dispatch.nvlink_out.tolist() == [0, row, 0, 0, 0, 2 * row, 0, 0]
    assert dispatch.nvlink_in.tolist() == [row, 0, 0, 0, 0, 0, row, row]
    assert dispatch.nic_out.tolist() == [0, row, 0, 0, 0, 0, 0, 0]
    assert dispatch.nic_in.tolist() == [0, 0, 0, 0, 0, row, 0, 0]
    combine = port_bytes(plan, shape, route="rail", granularity="rank", op="combine")
    assert combine.nvlink_out.tolist() == [BF16_ROW, 0, 0, 0, 0, 0, BF16_ROW, BF16_ROW]
    assert combine.nvlink_in.tolist() == [0, BF16_ROW, 0, 0, 0, 2 * BF16_ROW, 0, 0]
    assert combine.nic_out.tolist() == [0, 0, 0, 0, 0, BF16_ROW, 0, 0]


def test_pxn_changes_rail_before_the_nic() -> None:
    shape, plan = _one_token(5, 6)
    row = FP8_ROW + 16
    found = port_bytes(plan, shape, route="pxn", granularity="rank", op="dispatch")
    assert found.nvlink_out.tolist() == [0, row, 0, 0, 0, 0, 0, 0]
    assert found.nvlink_in.tolist() == [0, 0, row, 0, 0, 0, 0, 0]
    assert found.nic_out.tolist() == [0, row, row, 0, 0, 0, 0, 0]
    assert found.nic_in.tolist() == [0, 0, 0, 0, 0, row, row, 0]


def _three_tokens() -> tuple[Shape, Plan]:
    """Return 2 nodes x 2 ranks, one expert a rank: 0 sends 2 tokens to 3, and 1 sends 1 to 0."""
    shape = _shape(2, 2, 4, 1)
    idx = [np.array(rank, np.int32).reshape(-1, 1) for rank in ([3, 3], [0], [], [-1])]
    return shape, Plan.of(Routing(idx, [np.ones(each.shape, np.float32) for each in idx]), shape)


@pytest.mark.parametrize("op", OPS)
def test_padded_splits_are_all_as_long_as_the_longest(op: HalfOp) -> None:
    shape, plan = _three_tokens()
    row = FP8_ROW + 8 if op == "dispatch" else BF16_ROW
    asked = {"granularity": "rank", "op": op, "splits": "padded"}
    ports = port_bytes(plan, shape, route="one_hop", **asked)
    # Two rows to the other rank of the node, two to each of the two ranks of the other node.
    for name, num_rows in (("nvlink_out", 2), ("nvlink_in", 2), ("nic_out", 4), ("nic_in", 4)):
        assert getattr(ports, name).tolist() == [num_rows * row] * 4, name
    # By PXN half of what goes to the other node first goes to the other rank: one pair's rows.
    pxn = port_bytes(plan, shape, route="pxn", **asked)
    assert pxn.nvlink_out.tolist() == [4 * row] * 4
    assert pxn.nic_out.tolist() == [4 * row] * 4
    totals = byte_totals(plan, shape, ports, **asked)
    assert (totals.local, totals.nvlink, totals.rdma) == (8 * row, 8 * row, 16 * row)
    assert totals.logical == 3 * (208 if op == "dispatch" else 400)


@pytest.mark.parametrize("op", OPS)
def test_gathered_splits_are_all_tokens(op: HalfOp) -> None:
    shape, plan = _three_tokens()
    # As many as any rank could have had, which no rank here has.
    shape = replace(shape, num_tokens=5)
    row = FP8_ROW + 8 if op == "dispatch" else BF16_ROW
    asked = {"granularity": "rank", "op": op, "splits": "gathered"}
    ports = port_bytes(plan, shape, route="one_hop", **asked)
    for name, num_rows in (("nvlink_out", 5), ("nvlink_in", 5), ("nic_out", 10), ("nic_in", 10)):
        assert getattr(ports, name).tolist() == [num_rows * row] * 4, name
    totals = byte_totals(plan, shape, ports, **asked)
    assert (totals.local, totals.nvlink, totals.rdma) == (20 * row, 20 * row, 40 * row)
    assert totals.logical == 3 * (208 if op == "dispatch" else 400)


def test_nothing_is_padded_where_nothing_is_sent() -> None:
    shape = _shape(1, 2, 2, 1)
    idx = [np.full((3, 1), -1, np.int32)] * 2
    plan = Plan.of(Routing(idx, [np.ones(each.shape, np.float32) for each in idx]), shape)
    ports = port_bytes(
        plan, shape, route="one_hop", granularity="rank", op="dispatch", splits="padded"
    )
    assert not ports.nvlink_out.any()


def test_only_exact_rows_share_a_copy_over_the_rail() -> None:
    shape, plan = _three_tokens()
    with pytest.raises(AssertionError, match="padded rows"):
        port_bytes(plan, shape, route="rail", granularity="rank", op="combine", splits="padded")


@pytest.mark.parametrize(("route", "granularity", "op"), COMBINATIONS)
def test_flits_go_against_the_rows_of_a_node(
    route: Route, granularity: Granularity, op: HalfOp
) -> None:
    shape = _shape(2, 2, 16, 3)
    _, plan = _plan(shape, 20)
    asked = {"route": route, "granularity": granularity, "op": op}
    # One flit for a whole row of any size, so that their bytes count rows.
    rows = port_bytes(plan, shape, route=route, granularity=granularity, op=op)
    found = port_bytes(
        plan, shape, route=route, granularity=granularity, op=op, against=Flits(1, 10**6)
    )
    row = BF16_ROW if op == "combine" else FP8_ROW + 8 * (1 if granularity == "selection" else 3)
    assert rows.nvlink_out.sum() > 0, asked
    assert np.array_equal(found.nvlink_out - rows.nvlink_out, rows.nvlink_in // row)
    assert np.array_equal(found.nvlink_in - rows.nvlink_in, rows.nvlink_out // row)
    # Between nodes they are in the NIC's payload rate.
    assert np.array_equal(found.nic_out, rows.nic_out)
    assert np.array_equal(found.nic_in, rows.nic_in)


def test_flits_are_for_whole_packets() -> None:
    assert [REQUESTS.per_row(num_bytes) for num_bytes in (1, 128, 129, 14336)] == [16, 16, 32, 1792]
    assert Flits.of(H800, pulled=True) == REQUESTS
    ack_bytes = int(H800.sm.write_ack_bytes.value)
    assert Flits.of(H800, pulled=False) == Flits(flit_bytes=ack_bytes, packet_bytes=128)


def test_totals_by_hand() -> None:
    shape, plan = _one_token(1, 0, 5, 6, 7)
    ports = port_bytes(plan, shape, route="rail", granularity="rank", op="dispatch")
    totals = byte_totals(plan, shape, ports, granularity="rank", op="dispatch")
    # FP8 without padding: 200 elements and two scales.
    assert (totals.logical, totals.logical_rdma) == (5 * 208, 2 * 208)
    assert (totals.local, totals.nvlink, totals.rdma) == (264, 3 * 264, 264)
    back = port_bytes(plan, shape, route="one_hop", granularity="rank", op="combine")
    combined = byte_totals(plan, shape, back, granularity="rank", op="combine")
    assert (combined.logical, combined.logical_rdma) == (5 * 400, 2 * 400)
    assert (combined.local, combined.nvlink, combined.rdma) == (BF16_ROW, BF16_ROW, 3 * BF16_ROW)
    pair = totals + combined
    assert (pair.logical, pair.rdma) == (5 * 608, 264 + 3 * BF16_ROW)


def test_logical_bytes_do_not_depend_on_granularity() -> None:
    shape, plan = _one_token(0, 1)
    wide = replace(shape, num_experts=16, num_topk=4)
    idx = [np.array([[0, 1, 2, 3]], np.int32)] + [np.zeros((0, 4), np.int32)] * 7
    plan = Plan.of(Routing(idx, [np.ones(each.shape, np.float32) for each in idx]), wide)
    ports = port_bytes(plan, wide, route="one_hop", granularity="selection", op="dispatch")
    totals = byte_totals(plan, wide, ports, granularity="selection", op="dispatch")
    assert (totals.logical, totals.local, totals.nvlink) == (
        2 * 208,
        2 * (FP8_ROW + 8),
        2 * (FP8_ROW + 8),
    )
