"""The oracle against plain loops, which share nothing with it but the rounding of `fma`."""

from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comms.errors import UsageError
from kernels.floats import fma
from kernels.reference import (
    Granularity,
    RoutingIndex,
    combine,
    combine_to,
    dispatch,
    dispatch_to,
)
from kernels.shape import Shape

Bytes = npt.NDArray[np.uint8]
Hops = Literal[1, 2]


class World(NamedTuple):
    """A routing and its shape."""

    shape: Shape
    topk_idx: list[npt.NDArray[np.int32]]
    topk_weights: list[npt.NDArray[np.float32]]


class Case(NamedTuple):
    """Arguments of `make_world`."""

    nodes: int
    ranks_per_node: int
    num_tokens: list[int]
    num_experts: int
    num_topk: int
    masked: float = 0.0
    hidden: int = 7
    prefix: int | None = None


CASES = {
    "one rank": Case(1, 1, [7], 4, 2),
    "one token": Case(1, 2, [1, 0], 4, 2),
    "no tokens": Case(2, 2, [0, 0, 0, 0], 8, 2),
    "60 experts on 8 ranks": Case(2, 4, [7, 0, 3, 7, 1, 5, 0, 2], 60, 8),
    "ranks that own no expert": Case(2, 4, [3, 1, 4, 1, 5, 0, 2, 6], 9, 3, masked=0.2),
    "top-22": Case(3, 2, [5, 1, 0, 7, 3, 2], 60, 22, masked=0.3),
    "all masked": Case(2, 2, [3, 0, 2, 1], 8, 4, masked=1.0),
    "half masked": Case(4, 2, [9, 7, 5, 3, 1, 0, 2, 4], 16, 4, masked=0.5, hidden=200),
    "hidden 2880, several passes": Case(2, 1, [95, 46], 8, 4, hidden=2880),
    "prefix": Case(2, 2, [7, 7, 7, 7], 32, 8, hidden=7168, prefix=192),
}


def make_world(case: Case, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    topk_idx, topk_weights = [], []
    for tokens in case.num_tokens:
        order = np.argsort(rng.random((tokens, case.num_experts)), axis=1)
        idx = order[:, : case.num_topk].astype(np.int32)
        idx[rng.random(idx.shape) < case.masked] = -1
        weights = rng.random(idx.shape, dtype=np.float32)
        topk_idx.append(idx)
        topk_weights.append(np.where(idx >= 0, weights, np.float32(0)))
    shape = Shape(
        num_nodes=case.nodes,
        ranks_per_node=case.ranks_per_node,
        num_tokens=max(case.num_tokens),
        hidden=case.hidden,
        num_experts=case.num_experts,
        num_topk=case.num_topk,
        num_sms=1,
        prefix=case.prefix,
    )
    return World(shape, topk_idx, topk_weights)


def slow_rows(world: World, rank: int, granularity: Granularity) -> list[tuple[int, int, int]]:
    """(source rank, source token, k) of each row of a rank; k is -1 per rank."""
    per_rank = world.shape.experts_per_rank
    experts = range(rank * per_rank, (rank + 1) * per_rank)
    rows = []
    if granularity == "selection":
        for expert in experts:
            for source, idx in enumerate(world.topk_idx):
                for token, selected in enumerate(idx.tolist()):
                    rows += [(source, token, k) for k, e in enumerate(selected) if e == expert]
        return rows
    for source, idx in enumerate(world.topk_idx):
        for token, selected in enumerate(idx.tolist()):
            if any(e in experts for e in selected):
                rows.append((source, token, -1))
    return rows


def random_x(world: World) -> list[Bytes]:
    rng = np.random.default_rng(1)
    stride = world.shape.dispatch_row.stride_bytes
    return [rng.integers(0, 256, (len(idx), stride), dtype=np.uint8) for idx in world.topk_idx]


def random_y(world: World, granularity: Granularity) -> list[Bytes]:
    """BF16 rows of wide range; each rank has two rows more than it receives."""
    rng = np.random.default_rng(2)
    layout = world.shape.combine_row
    y = []
    for rank in range(world.shape.world_size):
        num_rows = len(slow_rows(world, rank, granularity)) + 2
        values = rng.standard_normal((num_rows, layout.moved))
        values *= 2.0 ** rng.integers(-6, 7, values.shape)
        rows = np.full((num_rows, layout.stride_bytes), 0xFF, np.uint8)
        rows[:, : 2 * layout.moved] = values.astype(ml_dtypes.bfloat16).view(np.uint8)
        y.append(rows)
    return y


def values_of(row: Bytes, moved: int) -> npt.NDArray[np.float32]:
    bits = row[: 2 * moved].copy()
    return np.asarray(bits.view(ml_dtypes.bfloat16), np.float32)


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def add_up(terms: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def slow_combine(world: World, y: list[Bytes], granularity: Granularity, hops: Hops) -> list[Bytes]:
    shape, layout = world.shape, world.shape.combine_row
    rows: dict[tuple[int, int, int], list[tuple[int, npt.NDArray[np.float32]]]] = {}
    for rank in range(shape.world_size):
        for row, key in enumerate(slow_rows(world, rank, granularity)):
            rows.setdefault(key, []).append((rank, values_of(y[rank][row], layout.moved)))
    result = []
    for source, idx in enumerate(world.topk_idx):
        out = np.zeros((len(idx), layout.stride_bytes), np.uint8)
        for token in range(len(idx)):
            total = None
            if granularity == "selection":
                for k in range(shape.num_topk):
                    for _, values in rows.get((source, token, k), []):
                        weight = world.topk_weights[source][token, k : k + 1]
                        start = np.full_like(values, -0.0) if total is None else total
                        total = fma(weight, values, start)
            elif (source, token, -1) in rows:
                contributions = rows[source, token, -1]
                if hops == 1:
                    total = add_up([values for _, values in contributions])
                else:
                    nodes: dict[int, list[npt.NDArray[np.float32]]] = {}
                    for rank, values in contributions:
                        nodes.setdefault(rank // shape.ranks_per_node, []).append(values)
                    total = add_up([rounded(add_up(nodes[node])) for node in sorted(nodes)])
            if total is not None:
                bits = total.astype(ml_dtypes.bfloat16).view(np.uint8)
                out[token, : 2 * layout.moved] = bits
        result.append(out)
    return result


@pytest.mark.parametrize("granularity", ["rank", "selection"])
@pytest.mark.parametrize("name", CASES)
def test_dispatch(name: str, granularity: Granularity) -> None:
    world = make_world(CASES[name])
    shape = world.shape
    x = random_x(world)
    results = dispatch(x, world, shape=shape, granularity=granularity)
    assert len(results) == shape.world_size
    for rank, result in enumerate(results):
        rows = slow_rows(world, rank, granularity)
        columns = shape.num_topk if granularity == "rank" else 1
        counts = np.zeros((shape.world_size, shape.experts_per_rank), np.int32)
        if granularity == "rank":
            counts = counts[:, :1]
        assert result.recv_x.shape == (len(rows), shape.dispatch_row.stride_bytes)
        assert result.recv_topk_idx.shape == (len(rows), columns)
        assert result.recv_topk_weights.shape == (len(rows), columns)
        assert result.recv_topk_idx.dtype == result.recv_counts.dtype == np.int32
        assert result.recv_topk_weights.dtype == np.float32
        for row, (source, token, k) in enumerate(rows):
            assert np.array_equal(result.recv_x[row], x[source][token])
            for column in range(columns):
                slot = column if k < 0 else k
                expert = int(world.topk_idx[source][token, slot])
                local = expert - rank * shape.experts_per_rank
                owned = expert >= 0 and 0 <= local < shape.experts_per_rank
                weight = world.topk_weights[source][token, slot] if owned else 0
                assert result.recv_topk_idx[row, column] == (local if owned else -1)
                assert result.recv_topk_weights[row, column] == weight
            counts[source, 0 if k < 0 else result.recv_topk_idx[row, 0]] += 1
        assert np.array_equal(result.recv_counts, counts)


@pytest.mark.parametrize(
    ("granularity", "hops"), [("rank", 1), ("rank", 2), ("selection", 1)], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_combine(name: str, granularity: Granularity, hops: Hops) -> None:
    world = make_world(CASES[name])
    y = random_y(world, granularity)
    results = combine(y, world, shape=world.shape, granularity=granularity, hops=hops)
    expected = slow_combine(world, y, granularity, hops)
    assert len(results) == world.shape.world_size
    for result, of_rank in zip(results, expected, strict=True):
        assert result.shape == of_rank.shape
        assert np.array_equal(result, of_rank)


def test_dispatch_written_out() -> None:
    shape = Shape(1, 2, num_tokens=2, hidden=1, num_experts=4, num_topk=3, num_sms=1)
    idx = [np.array([[3, 0, 1], [2, -1, 3]], np.int32), np.array([[1, 3, -1]], np.int32)]
    weights = [
        np.array([[0.1, 0.2, 0.3], [0.4, 0.0, 0.5]], np.float32),
        np.array([[0.6, 0.7, 0.0]], np.float32),
    ]
    world = World(shape, idx, weights)
    x = [np.full((2, 32), [[10], [11]], np.uint8), np.full((1, 32), 20, np.uint8)]
    first, second = dispatch(x, world, shape=shape, granularity="rank")
    assert first.recv_x[:, 0].tolist() == [10, 20]
    assert first.recv_topk_idx.tolist() == [[-1, 0, 1], [1, -1, -1]]
    assert second.recv_x[:, 0].tolist() == [10, 11, 20]
    assert second.recv_topk_idx.tolist() == [[1, -1, -1], [0, -1, 1], [-1, 1, -1]]
    expected = np.array([[0.1, 0, 0], [0.4, 0, 0.5], [0, 0.7, 0]], np.float32)
    assert np.array_equal(second.recv_topk_weights, expected)
    assert second.recv_counts.tolist() == [[2], [1]]
    first, second = dispatch(x, world, shape=shape, granularity="selection")
    assert first.recv_x[:, 0].tolist() == [10, 10, 20]
    assert first.recv_topk_idx.tolist() == [[0], [1], [1]]
    assert second.recv_x[:, 0].tolist() == [11, 10, 11, 20]
    assert second.recv_topk_idx.tolist() == [[0], [1], [1], [1]]
    expected = np.array([[0.4], [0.1], [0.5], [0.7]], np.float32)
    assert np.array_equal(second.recv_topk_weights, expected)
    assert second.recv_counts.tolist() == [[1, 2], [0, 1]]


def combine_token(
    contributions: list[float | None],
    *,
    ranks_per_node: int = 1,
    hops: Hops = 1,
    weights: list[float] | None = None,
) -> int:
    """Bits of the sum of one token of rank 0 to which rank r contributes `contributions[r]`."""
    world_size = len(contributions)
    granularity: Granularity = "rank" if weights is None else "selection"
    shape = Shape(
        world_size // ranks_per_node,
        ranks_per_node,
        num_tokens=1,
        hidden=1,
        num_experts=world_size,
        num_topk=world_size,
        num_sms=1,
    )
    # Selected in descending order, so that ascending ranks and ascending k differ.
    selected = [-1 if c is None else r for r, c in enumerate(contributions)][::-1]
    idx = [np.array([selected], np.int32)] + [np.zeros((0, world_size), np.int32)] * (
        world_size - 1
    )
    all_weights = [np.zeros(i.shape, np.float32) for i in idx]
    if weights is not None:
        all_weights[0][0] = weights[::-1]
    y = []
    for contribution in contributions:
        rows = np.zeros((0 if contribution is None else 1, 32), np.uint8)
        if contribution is not None:
            rows[0, :2] = np.array([contribution], ml_dtypes.bfloat16).view(np.uint8)
        y.append(rows)
    world = World(shape, idx, all_weights)
    out = combine(y, world, shape=shape, granularity=granularity, hops=hops)
    assert not out[0][0, 2:].any()
    return int(out[0][0, :2].copy().view(np.uint16)[0])


def bf16_bits(value: float) -> int:
    return int(np.array([value], ml_dtypes.bfloat16).view(np.uint16)[0])


@pytest.mark.parametrize("hops", [1, 2])
def test_the_sum_starts_from_the_first_contribution(hops: Hops) -> None:
    assert combine_token([None, -0.0], hops=hops) == 0x8000
    assert combine_token([-0.0, -0.0], hops=hops) == 0x8000
    assert combine_token([-0.0, 0.0], hops=hops) == 0x0000
    assert combine_token([None, None], hops=hops) == 0x0000


def test_the_weighted_sum_starts_from_the_first_contribution() -> None:
    assert combine_token([None, -0.0], weights=[0.0, 0.5]) == 0x8000
    assert combine_token([-0.0, 0.0], weights=[0.5, 0.5]) == 0x0000
    assert combine_token([None, None], weights=[0.0, 0.0]) == 0x0000


@pytest.mark.parametrize("hops", [1, 2])
def test_ranks_ascend(hops: Hops) -> None:
    assert combine_token([2.0**40, 1.0, -(2.0**40)], hops=hops) == bf16_bits(0)
    assert combine_token([2.0**40, -(2.0**40), 1.0], hops=hops) == bf16_bits(1)


def test_topk_slots_ascend() -> None:
    ones = [1.0, 1.0, 1.0]
    assert combine_token([2.0**40, -(2.0**40), 1.0], weights=ones) == bf16_bits(0)
    assert combine_token([1.0, -(2.0**40), 2.0**40], weights=ones) == bf16_bits(1)


def test_two_hops_round_twice() -> None:
    contributions: list[float | None] = [256.0, 1.0, 1.0, None]
    assert combine_token(contributions, ranks_per_node=2) == bf16_bits(258)
    assert combine_token(contributions, ranks_per_node=2, hops=2) == bf16_bits(256)
    # Rank 0 holds the token, and its own node rounds too.
    contributions = [1.0, 2.0**-8, 2.0**-16, None]
    assert combine_token(contributions, ranks_per_node=2) == 0x3F81
    assert combine_token(contributions, ranks_per_node=2, hops=2) == 0x3F80


def test_weighted_rows_are_multiplied_and_added_with_one_rounding() -> None:
    # 97 * 172961 = 2**24 + 1; with the product rounded to FP32 first, the difference would be 0.
    got = combine_token([97.0, -(2.0**24)], weights=[172961.0, 1.0])
    assert got == bf16_bits(1)


@pytest.mark.parametrize("hops", [1, 2])
def test_subnormals_infinities_and_nan(hops: Hops) -> None:
    assert combine_token([2.0**-133, 2.0**-133], hops=hops) == bf16_bits(2.0**-132)
    assert combine_token([2.0**-126, -(2.0**-133)], hops=hops) == 0x007F
    assert combine_token([np.inf, 1.0], hops=hops) == 0x7F80
    assert combine_token([3e38, 3e38, -3e38], hops=hops) == 0x7F80
    assert combine_token([np.inf, -np.inf], hops=hops) == 0x7FFF
    assert combine_token([1.0, -np.nan], hops=hops) == 0x7FFF


def test_weighted_subnormals_infinities_and_nan() -> None:
    assert combine_token([2.0**-133, 2.0**-132], weights=[1.0, 0.5]) == bf16_bits(2.0**-132)
    assert combine_token([np.inf, 1.0], weights=[0.5, 0.5]) == 0x7F80
    assert combine_token([np.inf, -np.inf], weights=[0.5, 0.5]) == 0x7FFF
    assert combine_token([np.inf, 1.0], weights=[0.0, 0.5]) == 0x7FFF


def test_weights_of_no_expert_are_ignored() -> None:
    world = make_world(CASES["half masked"])
    garbage = [np.where(i < 0, np.float32(np.nan), w) for i, w in zip(*world[1:], strict=True)]
    marked = world._replace(topk_weights=garbage)
    y = random_y(world, "selection")
    clean = combine(y, world, shape=world.shape, granularity="selection")
    for a, b in zip(
        combine(y, marked, shape=world.shape, granularity="selection"), clean, strict=True
    ):
        assert np.array_equal(a, b)
    for result in dispatch(random_x(world), marked, shape=world.shape, granularity="rank"):
        assert not np.isnan(result.recv_topk_weights).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_the_index_is_its_own_inverse(
    nodes: int, ranks_per_node: int, num_experts: int, masked: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5, nodes * ranks_per_node).tolist()
    num_topk = int(rng.integers(1, num_experts + 1))
    world = make_world(Case(nodes, ranks_per_node, tokens, num_experts, num_topk, masked), seed)
    for granularity in ("rank", "selection"):
        index = RoutingIndex.build(world, world.shape, granularity)
        sent = set()
        for source in range(world.shape.world_size):
            for token, (ranks, rows) in enumerate(zip(*index.contributors(source), strict=True)):
                assert np.array_equal(ranks < 0, rows < 0)
                for rank, row in zip(
                    ranks[ranks >= 0].tolist(), rows[rows >= 0].tolist(), strict=True
                ):
                    sources, source_tokens = index.recv_index(rank)
                    assert (sources[row], source_tokens[row]) == (source, token)
                    sent.add((rank, row))
        assert sent == {
            (rank, row)
            for rank in range(world.shape.world_size)
            for row in range(len(slow_rows(world, rank, granularity)))
        }
        assert len(sent) == sum(index.num_recv(r) for r in range(world.shape.world_size))


def test_one_rank_is_one_of_all() -> None:
    world = make_world(CASES["top-22"])
    index = RoutingIndex.build(world, world.shape, "rank")
    x, y = random_x(world), random_y(world, "rank")
    everywhere = dispatch(x, world, shape=world.shape, granularity="rank")
    alone = dispatch_to(3, x, index)
    assert np.array_equal(alone.recv_x, everywhere[3].recv_x)
    assert np.array_equal(alone.recv_topk_idx, everywhere[3].recv_topk_idx)
    assert np.array_equal(alone.recv_topk_weights, everywhere[3].recv_topk_weights)
    assert np.array_equal(alone.recv_counts, everywhere[3].recv_counts)
    combined = combine(y, world, shape=world.shape, granularity="rank", hops=2)
    assert np.array_equal(combine_to(3, y, index, hops=2), combined[3])


def test_more_experts_than_a_16_bit_sort_takes() -> None:
    shape = Shape(1, 2, num_tokens=2, hidden=1, num_experts=70_000, num_topk=2, num_sms=1)
    idx = [np.array([[69_999, 1], [40_000, 34_999]], np.int32), np.zeros((0, 2), np.int32)]
    world = World(shape, idx, [np.ones(i.shape, np.float32) for i in idx])
    index = RoutingIndex.build(world, shape, "selection")
    assert index.recv_index(1)[1].tolist() == [1, 0]
    assert index.recv_index(0)[1].tolist() == [0, 1]


@pytest.mark.parametrize("expert", [-2, 8])
def test_an_expert_that_does_not_exist(expert: int) -> None:
    world = make_world(Case(1, 2, [3, 3], 8, 2))
    world.topk_idx[1][2, 0] = expert
    with pytest.raises(UsageError, match=f"between -1 and 7, got {expert}"):
        RoutingIndex.build(world, world.shape, "rank")


def test_a_routing_of_another_shape() -> None:
    world = make_world(Case(1, 2, [3, 3], 8, 2))
    with pytest.raises(UsageError, match="must list 2 ranks, got 1"):
        RoutingIndex.build(world._replace(topk_idx=world.topk_idx[:1]), world.shape, "rank")
    narrow = [world.topk_idx[0], world.topk_idx[1][:, :1]]
    with pytest.raises(UsageError, match=r"of rank 1 must be \(num_tokens, 2\)"):
        RoutingIndex.build(world._replace(topk_idx=narrow), world.shape, "rank")


def test_two_hops_need_one_row_per_rank() -> None:
    world = make_world(CASES["prefix"])
    y = random_y(world, "selection")
    with pytest.raises(UsageError, match="hops=1"):
        combine(y, world, shape=world.shape, granularity="selection", hops=2)
