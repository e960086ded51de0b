"""Random routings: distributions, exact ratios, masks and weights."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from bench.traffic.plan import Plan
from bench.workloads.gate import Gate
from bench.workloads.routing import ROUTINGS, Routing, generate, parse_routing
from comms.errors import UsageError
from kernels.shape import Shape

#: Eight ranks of DeepSeek-V3.
V3 = Gate(
    world_size=8, num_tokens=2048, num_experts=256, num_topk=8, num_groups=8, num_topk_groups=4
)


def _route(text: str, gate: Gate) -> Routing:
    return generate(parse_routing(text), gate)


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
    return Plan.of(_route(text, gate), shape)


def _all(routing: Routing) -> npt.NDArray[np.int32]:
    return np.concatenate(routing.topk_idx)


@pytest.mark.parametrize("text", ["uniform", "power-law:0.8", "groups", "hot:2"])
@pytest.mark.parametrize("gate", [V3, Gate(3, 50, 60, 22, 4, 3), Gate(8, 40, 896, 16, 1, 1)])
def test_selections_are_distinct_experts_in_range(text: str, gate: Gate) -> None:
    routing = _route(text, gate)
    for topk_idx, weights in zip(routing.topk_idx, routing.topk_weights, strict=True):
        assert topk_idx.shape == weights.shape == (gate.num_tokens, gate.num_topk)
        assert topk_idx.dtype == np.int32
        assert weights.dtype == np.float32
        assert topk_idx.min() >= 0
        assert topk_idx.max() < gate.num_experts
        assert (np.diff(np.sort(topk_idx, axis=1), axis=1) > 0).all()
        # A routing sorted by id would hide kernels that depend on the order.
        assert (np.diff(topk_idx, axis=1) < 0).any()


@pytest.mark.parametrize("text", ["uniform", "power-law:0.8", "groups", "hot:2"])
def test_the_seed_decides_the_routing(text: str) -> None:
    gate = replace(V3, num_tokens=64, masked_ratio=0.1)
    first, again, other = (_route(text, replace(gate, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(_all(first), _all(again))
    assert not np.array_equal(_all(first), _all(other))
    assert not np.array_equal(first.topk_idx[0], first.topk_idx[1])
    for mine, same in zip(first.topk_weights, again.topk_weights, strict=True):
        assert np.array_equal(mine, same)


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("uniform", [[0, 2, 13, 12], [5, 2, 14, 4], [11, 13, 2, 3], [5, 11, 2, 9]]),
        ("power-law:0.8", [[3, 7, 5, 8], [3, 13, 12, 1], [9, 15, 10, 12], [8, 6, 3, 14]]),
        ("groups", [[0, 2, 13, 12], [5, 2, 4, 6], [11, 13, 8, 14], [5, 11, 9, 4]]),
        ("hot:2", [[0, 2, 13, 12], [5, 2, 4, 6], [2, 3, 1, 5], [5, 11, 2, 9]]),
    ],
)
def test_routings_are_the_same_everywhere(text: str, golden: list[list[int]]) -> None:
    routing = _route(text, Gate(2, 2, 16, 4, 4, 2, seed=1))
    assert _all(routing).tolist() == golden
    bits = routing.topk_weights[1][1].view(np.uint32)
    assert [hex(word) for word in bits] == ["0x3ec1cf10", "0x3e988570", "0x3e89475d", "0x3d632116"]


@pytest.mark.parametrize(
    ("text", "world_size", "num_nodes", "ranks", "nodes"),
    [
        # reference/fabric.md 2.2: distinct ranks and nodes per token, top-8 of 256.
        ("uniform", 8, 1, 5.296, 1),
        ("uniform", 16, 2, 6.519, 1.994),
        ("uniform", 32, 4, 7.276, 3.621),
        ("groups", 64, 8, 7.468, 3.984),
    ],
)
def test_distinct_ranks_and_nodes(
    text: str, world_size: int, num_nodes: int, ranks: float, nodes: float
) -> None:
    plan = _plan(
        text, replace(V3, world_size=world_size, num_tokens=16384 // world_size), num_nodes
    )
    assert plan.copies.sum() / 16384 == pytest.approx(ranks, rel=0.004)
    assert plan.node_copies.sum() / 16384 == pytest.approx(nodes, rel=0.004)
    if text == "uniform":
        missed = math.comb(256 - 256 // world_size, 8) / math.comb(256, 8)
        assert plan.copies.sum() / 16384 == pytest.approx(world_size * (1 - missed), rel=0.004)


def test_groups_use_only_so_many_groups_and_the_best_expert() -> None:
    limited, free = _all(_route("groups", V3)), _all(_route("uniform", V3))
    groups_used = [len(set(token)) for token in limited // 32]
    assert max(groups_used) == 4
    assert max(len(set(token)) for token in free // 32) > 4
    # Scores are those of `uniform`, and the group of the best expert always stays.
    assert np.array_equal(limited[:, 0], free[:, 0])
    assert not np.array_equal(limited, free)


def test_uniform_loads_every_expert_alike() -> None:
    loads = np.bincount(_all(_route("uniform", V3)).ravel(), minlength=256)
    mean = 8 * 2048 * 8 / 256
    assert ((loads - mean) ** 2).sum() / mean == pytest.approx(256, abs=5 * math.sqrt(512))


def test_power_law_selects_first_by_popularity() -> None:
    gate = Gate(4, 5000, 16, 3)
    first = np.bincount(_all(_route("power-law:1.2", gate))[:, 0], minlength=16)
    popularity = np.arange(1, 17.0) ** -1.2
    expected = np.sort(20000 * popularity / popularity.sum())
    chi_square = ((np.sort(first) - expected) ** 2 / expected).sum()
    assert chi_square < 15 + 5 * math.sqrt(30)
    hottest = {
        int(np.bincount(_all(_route("power-law:3", replace(gate, seed=seed)))[:, 0]).argmax())
        for seed in range(8)
    }
    assert len(hottest) > 2


@pytest.mark.parametrize(("alpha", "max_over_mean"), [("0.6", 10.5), ("0.8", 17.9), ("1.2", 29.8)])
def test_power_law_has_the_hot_expert_of_the_reference(alpha: str, max_over_mean: float) -> None:
    # reference/fabric.md section 5, 16,384 tokens, top-8 of 256.
    loads = np.bincount(_all(_route(f"power-law:{alpha}", V3)).ravel(), minlength=256)
    assert loads.max() / loads.mean() == pytest.approx(max_over_mean, rel=0.03)


def test_power_law_of_zero_is_uniform_and_ranks_share_popularity() -> None:
    flat = np.bincount(_all(_route("power-law:0", V3)).ravel(), minlength=256)
    assert flat.max() / flat.mean() < 1.2
    per_rank = [np.bincount(idx.ravel()).argmax() for idx in _route("power-law:1", V3).topk_idx]
    assert len(set(per_rank)) == 1


@pytest.mark.parametrize(
    ("text", "gate", "message"),
    [
        ("hot:4", Gate(1, 8, 8, 2), "two ranks"),
        ("hot:0.5", V3, "at least 1"),
        ("hot:64", replace(V3, world_size=64), r"at most 63\b"),
        ("hot:99", Gate(2, 4, 8, 2), r"at most 8\b"),
        ("groups", Gate(8, 8, 64, 8), "num_groups"),
        ("groups", Gate(8, 8, 60, 8, 8, 4), "60 does not divide into 8"),
        ("groups", Gate(8, 8, 64, 8, 64, 4), "cannot hold num_topk 8"),
        ("power-law:17", V3, "at most 16"),
    ],
)
def test_what_cannot_be_met_is_refused(text: str, gate: Gate, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _route(text, gate)


@pytest.mark.parametrize(
    "text",
    ["zipf", "", "uniform:", "uniform:2", "hot", "hot:", "hot:x", "hot:-2", "hot:nan", "hot:1/2"]
    + ["power-law", "file", "matrix:"],
)
def test_a_wrong_spec_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}'"):
        parse_routing(text)


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UsageError) as caught:
        parse_routing("zipf:2")
    assert all(form in str(caught.value) for form in ROUTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masked_ratio": 1.5}, "masked_ratio"),
        ({"num_topk": 257}, "num_topk"),
        ({"num_experts": 70_000}, "num_experts"),
        ({"world_size": 0}, "ranks"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(V3, **changes)


@pytest.mark.parametrize("masked_ratio", [0.0, 0.3, 0.9, 1.0])
def test_masks_replace_their_share(masked_ratio: float) -> None:
    gate = replace(V3, num_tokens=100)
    whole = _route("uniform", gate)
    masked = _route("uniform", replace(gate, masked_ratio=masked_ratio))
    for before, after, weights in zip(
        whole.topk_idx, masked.topk_idx, masked.topk_weights, strict=True
    ):
        gone = after == -1
        assert gone.sum() == round(masked_ratio * 800)
        assert np.array_equal(after[~gone], before[~gone])
        assert (weights[gone] == 0).all()
        assert (weights[~gone] > 0).all()
        sums = weights.sum(axis=1)
        alive = ~gone.all(axis=1)
        np.testing.assert_allclose(sums[alive], 1, rtol=1e-6)
        assert (sums[~alive] == 0).all()
    if masked_ratio == 0.9:
        assert any((idx == -1).all(axis=1).any() for idx in masked.topk_idx)


def test_weights_descend_and_differ() -> None:
    weights = np.concatenate(_route("uniform", V3).topk_weights)
    assert (np.diff(weights, axis=1) <= 0).all()
    assert len(np.unique(weights)) > weights.size / 10


@pytest.mark.parametrize("text", ["uniform", "power-law:1", "groups", "hot:2"])
def test_no_tokens_give_empty_lists(text: str) -> None:
    routing = _route(text, replace(V3, num_tokens=0))
    assert [idx.shape for idx in routing.topk_idx] == [(0, 8)] * 8
    assert [weights.shape for weights in routing.topk_weights] == [(0, 8)] * 8
