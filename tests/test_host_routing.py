"""Routing, counting and division of the GPU's header by 32 lanes, against `cpu` and Python."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from host_build import Mutation
from host_lanes import Step, at, launch, one
from host_world import windows
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from comms.compiling import use_cache
from kernels.isa import ExpertLists, Matrix, Selected, TopkRow, lanes

Bytes = npt.NDArray[np.uint8]
GUARD = 0xA5
MOST_TOPK = 32


class Sizes(NamedTuple):
    """What a case is about; `first_rank` and `num_masked` are of `rank_mask`."""

    world_size: int
    experts_per_rank: int
    num_topk: int
    num_tokens: int
    rank: int
    first_rank: int
    num_masked: int
    num_counts: int
    num_columns: int
    num_rows: int
    row_bytes: int
    has_initial: int


class Places(NamedTuple):
    """Offsets of inputs, then of results; addresses where `cpu` is called."""

    idx: int
    weights: int
    words: int
    matrix: int
    cursor: int
    expert_cursor: int
    local_idx: int
    local_weights: int
    ranks: int
    rows: int
    experts: int
    expert_rows: int
    expert_weights: int
    rank_counts: int
    expert_counts: int
    entries: int
    selected_counts: int
    begins: int
    word_begins: int
    sums: int
    end: int


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    """Draw sizes; a token's selections are at most a lane each."""
    world_size = draw(st.integers(1, 70))
    first_rank = draw(st.integers(0, world_size - 1))
    num_columns = draw(st.integers(1, 70))
    return Sizes(
        world_size=world_size,
        experts_per_rank=draw(st.integers(1, 9)),
        num_topk=draw(st.one_of(st.integers(1, 9), st.integers(1, MOST_TOPK))),
        num_tokens=draw(st.integers(1, 70)),
        rank=draw(st.integers(0, world_size - 1)),
        first_rank=first_rank,
        num_masked=draw(st.integers(1, min(62, world_size - first_rank))),
        num_counts=draw(st.integers(0, 100)),
        num_columns=num_columns,
        num_rows=draw(st.integers(0, 11)),
        row_bytes=4 * (num_columns + draw(st.integers(0, 5))),
        has_initial=draw(st.integers(0, 1)),
    )


def _places(s: Sizes) -> Places:
    """Return where things are, 64 bytes or more apart."""
    selections, experts = s.num_tokens * s.num_topk, s.world_size * s.experts_per_rank
    inputs = [selections, selections, 2 * s.num_counts, s.row_bytes // 4 * s.num_rows]
    inputs += [s.world_size, experts]
    results = [s.num_topk] * 7 + [s.world_size, experts, 4 * selections, s.experts_per_rank]
    results += [s.num_counts + 1, s.num_counts + 1, s.num_columns]
    places, end = [], 0
    for count in (*inputs, *results):
        places.append(end)
        end += (4 * count + 127) // 64 * 64
    return Places(*places, end)


def _fill(memory: Bytes, s: Sizes, p: Places, seed: int) -> None:
    """Write a case's inputs."""
    rng = np.random.default_rng(seed)
    num_experts = s.world_size * s.experts_per_rank
    few = rng.integers(0, num_experts, 4)
    idx = rng.integers(0, num_experts, s.num_tokens * s.num_topk)
    # Some tokens select alike, some less than they may.
    idx = np.where(rng.random(len(idx)) < 0.3, rng.choice(few, len(idx)), idx)
    idx = np.where(rng.random(len(idx)) < rng.choice([0, 0.2, 0.9]), -1, idx)
    words = rng.integers(0, 1 << 20, s.num_counts) | rng.integers(0, 1 << 20, s.num_counts) << 32
    matrix = rng.integers(-(1 << 20), 1 << 20, s.row_bytes // 4 * s.num_rows)
    for place, values in (
        (p.idx, idx.astype(np.int32)),
        (p.weights, rng.random(len(idx), np.float32)),
        (p.words, words.astype(np.int64)),
        (p.matrix, matrix.astype(np.int32)),
        (p.cursor, rng.integers(0, 1 << 20, s.world_size).astype(np.int32)),
        (p.expert_cursor, rng.integers(0, 1 << 20, num_experts).astype(np.int32)),
    ):
        memory[place : place + values.nbytes] = values.view(np.uint8)


@cache
def _on_cpu() -> Callable[[Sizes, Places, int], tuple[int, int, int, int]]:
    use_cache((Path(__file__),))

    def run(s: Sizes, p: Places, scratch: int) -> tuple[int, int, int, int]:
        topk = TopkRow(p.idx, p.weights, s.num_topk, s.experts_per_rank, s.world_size)
        lanes.localize(s.rank, p.local_idx, p.local_weights, topk)
        lanes.count_ranks(topk, s.num_tokens, p.rank_counts, scratch)
        lanes.count_experts(topk, s.num_tokens, p.expert_counts)
        lanes.scan(p.words, s.num_counts, p.begins)
        lanes.scan_words(p.words, s.num_counts, p.word_begins)
        matrix = Matrix(p.matrix, s.num_columns, s.row_bytes)
        lanes.sum_rows(matrix, s.num_rows, p.idx if s.has_initial else 0, p.sums)
        return (
            lanes.route(topk, p.cursor, p.ranks, p.rows),
            lanes.route_experts(
                topk, p.expert_cursor, ExpertLists(p.experts, p.expert_rows, p.expert_weights)
            ),
            lanes.rank_mask(topk, s.first_rank, s.num_masked),
            lanes.select_rank(topk, s.num_tokens, s.rank, Selected(p.entries, p.selected_counts)),
        )

    compiled: Any = njit(cache=True)(run)
    return compiled  # type: ignore[no-any-return]


def _steps(s: Sizes, p: Places) -> list[Step]:
    """Return the same for lanes; what is returned comes last."""
    a = Places(*map(at, p))
    per_rank, world = s.experts_per_rank, s.world_size
    counted = a.idx, s.num_topk, per_rank, world, s.num_tokens
    initial = a.idx if s.has_initial else 0
    return [
        ("localize", s.rank, a.local_idx, a.local_weights, a.idx, a.weights, s.num_topk, per_rank),
        ("count_ranks", *counted, a.rank_counts),
        ("count_experts", *counted, a.expert_counts),
        ("scan", a.words, 4, s.num_counts, a.begins),
        ("scan", a.words, 8, s.num_counts, a.word_begins),
        ("sum_rows", a.matrix, s.num_columns, s.row_bytes, s.num_rows, initial, a.sums),
        ("route", a.idx, s.num_topk, per_rank, a.cursor, a.ranks, a.rows),
        (
            "route_experts",
            *(a.idx, a.weights, s.num_topk, a.expert_cursor),
            *(a.experts, a.expert_rows, a.expert_weights),
        ),
        ("rank_mask", a.idx, s.num_topk, per_rank, s.first_rank, s.num_masked),
        (
            "select_rank",
            *(a.idx, a.weights, s.num_topk, per_rank, s.num_tokens, s.rank),
            *(a.entries, a.selected_counts),
        ),
    ]


def _agree(s: Sizes, seed: int, mutation: Mutation | None = None) -> bool:
    """Return whether both write and return the same, and nothing besides."""
    p = _places(s)
    memory = windows(1, p.end + 64, GUARD)
    _fill(memory[0], s, p, seed)
    reference = memory[0].copy()
    results, outcome = launch({(0, 0, 0): _steps(s, p)}, memory, mutation=mutation, seed=seed)
    assert outcome.message == ""
    base = int(reference.ctypes.data)
    scratch = np.zeros(MOST_TOPK, np.int32)
    expected = _on_cpu()(s, Places(*(base + place for place in p)), int(scratch.ctypes.data))
    returned = results[0, 0, 0, -4:]
    alike = (returned == np.array(expected)[:, None]).all()
    return bool(alike and np.array_equal(memory[0], reference))


@settings(max_examples=200, deadline=None)
@given(sizes(), st.integers(0, 2**32 - 1))
def test_lanes_do_what_cpu_does(s: Sizes, seed: int) -> None:
    assert _agree(s, seed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "expert / static_cast<i32>(experts_per_rank)",
            "expert % static_cast<i32>(experts_per_rank)",
        ),
        ("expert < first + topk.experts_per_rank;", "true;"),
        ("first_bit(left)) < rank;", "first_bit(left)) <= rank;"),
        ("num_ranks > 32 ?", "num_ranks > 40 ?"),
        ("const i64 place = rank - first_rank;", "const i64 place = rank - first_rank & 31;"),
        ("  clear(counts, topk.world_size);\n", ""),
        ("is_new = owner_of(load_i32(idx + 4 * before)", "is_new = owner_of(load_i32(idx + 4 * k)"),
        ("for (; row < num_rows; ++row, place", "for (; row + 1 < num_rows; ++row, place"),
        ("if (lane_id() >= distance) sum", "if (lane_id() > distance) sum"),
        ("total += shuffle(sum, LANES - 1);", "total = shuffle(sum, LANES - 1);"),
        ("const u32 owning = ballot(owned), same", "const u32 owning = ballot(local >= 0), same"),
        ("num_entries += count_bits(owning);", "num_entries += LANES;"),
    ],
)
def test_mistakes_are_noticed(old: str, new: str) -> None:
    rng = np.random.default_rng(1)
    assert not all(
        _agree(
            Sizes(
                world_size=64,
                experts_per_rank=int(rng.integers(1, 9)),
                num_topk=int(rng.choice([8, 22])),
                num_tokens=int(rng.integers(1, 40)),
                rank=int(rng.integers(64)),
                first_rank=int(rng.integers(4)),
                num_masked=60 if index % 2 else 38,
                num_counts=int(rng.integers(30, 90)),
                num_columns=40,
                num_rows=index,
                row_bytes=176,
                has_initial=index % 2,
            ),
            index,
            Mutation("cuh/lanes.cuh", old, new),
        )
        for index in range(12)
    )


def _numbers() -> list[int]:
    """Return int64 of all widths and signs, and what is next to where widths end."""
    rng = np.random.default_rng(1)
    edges = [
        sign * (1 << bits) + near for bits in range(62) for near in (-1, 0, 1) for sign in (-1, 1)
    ]
    wide = rng.integers(-(2**62), 2**62, 300) >> rng.integers(0, 62, 300)
    return [*edges, *wide.tolist(), 2**63 - 1, -(2**63)]


def test_division_is_that_of_python() -> None:
    numbers = _numbers()
    rng = np.random.default_rng(2)
    pairs = [(int(a), int(b)) for a in numbers for b in rng.choice(numbers, 6)]
    pairs += [(a, b) for a in range(-9, 10) for b in range(-9, 10)]
    pairs = [(a, b) for a, b in pairs if b != 0 and (a, b) != (-(2**63), -1)]
    steps: list[Step] = [(name, *pair) for pair in pairs for name in ("floor_div", "modulo")]
    results, outcome = launch({(0, 0, 0): steps}, windows(1, 4096))
    assert outcome.is_clean, outcome
    got = results[0, 0, 0]
    assert (got == got[:, :1]).all()
    wanted = [value for a, b in pairs for value in (a // b, a % b)]
    wrong = [
        (step, value, right)
        for step, value, right in zip(steps, got[:, 0].tolist(), wanted, strict=True)
        if value != right
    ]
    assert not wrong, wrong[:4]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">> 31 == 0", ">> 33 == 0"),
        ("quotient * b != a && (a < 0)", "(a < 0)"),
        ("rest != 0 && (rest < 0)", "(rest < 0)"),
        ("? rest + b : rest", "? rest - b : rest"),
    ],
)
def test_mistakes_in_division_are_noticed(old: str, new: str) -> None:
    mutation = Mutation("cuh/division.cuh", old, new)
    pairs = [(-6, 3), (-7, 3), (7, -3), (2**32 + 7, 5), (7, 2**32 + 5), (-(2**40), -(2**33))]
    steps: list[Step] = [(name, *pair) for pair in pairs for name in ("floor_div", "modulo")]
    results, _ = launch({(0, 0, 0): steps}, windows(1, 4096), mutation=mutation)
    wanted = [value for a, b in pairs for value in (a // b, a % b)]
    assert results[0, 0, 0, :, 0].tolist() != wanted
    assert one("floor_div", -7, 3, windows=windows(1, 4096)) == -3
