"""What a warp's lanes do together with a token's selections, against plain NumPy."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from comms.compiling import use_cache
from kernels.isa import Selected, TopkRow, lanes

Int32 = npt.NDArray[np.int32]
GUARD = -77


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    use_cache((Path(__file__),))
    compiled: Callable[..., Any] = njit(cache=True)(function)
    return compiled


@cache
def _mask() -> Callable[..., Any]:
    def mask(topk: TopkRow, first: int, count: int) -> int:
        return lanes.rank_mask(topk, first, count)

    return _compiled(mask)


@cache
def _select() -> Callable[..., Any]:
    def select(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
        return lanes.select_rank(topk, num_tokens, rank, selected)

    return _compiled(select)


@cache
def _scan() -> Callable[..., Any]:
    def scan(address: int, num_words: int, begins: int) -> None:
        lanes.scan_words(address, num_words, begins)

    return _compiled(scan)


@cache
def _begin() -> Callable[..., Any]:
    def begin(row_bytes: int, index: int, num_parts: int) -> int:
        return lanes.part_begin(row_bytes, index, num_parts)

    return _compiled(begin)


@st.composite
def routings(draw: st.DrawFn) -> tuple[Int32, int, int]:
    """Draw `topk_idx` of a few tokens, experts of a rank, ranks."""
    world_size = draw(st.integers(1, 70))
    per_rank = draw(st.integers(1, 9))
    num_tokens = draw(st.integers(0, 12))
    num_topk = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    idx = rng.integers(-1, world_size * per_rank, (num_tokens, num_topk)).astype(np.int32)
    return idx, per_rank, world_size


def _topk(idx: Int32, weights: npt.NDArray[np.float32], per_rank: int, world: int) -> TopkRow:
    return TopkRow(int(idx.ctypes.data), int(weights.ctypes.data), idx.shape[1], per_rank, world)


@settings(max_examples=200, deadline=None)
@given(routings(), st.data())
def test_a_mask_has_a_bit_for_each_rank_that_a_token_goes_to(
    routing: tuple[Int32, int, int], data: st.DataObject
) -> None:
    idx, per_rank, world_size = routing
    first = data.draw(st.integers(0, world_size - 1))
    count = data.draw(st.integers(1, min(62, world_size - first)))
    weights = np.zeros(idx.shape, np.float32)
    for token in range(len(idx)):
        found = _mask()(_topk(idx[token:], weights, per_rank, world_size), first, count)
        ranks = set((idx[token][idx[token] >= 0] // per_rank).tolist())
        assert found == sum(1 << bit for bit in range(count) if first + bit in ranks)


@settings(max_examples=200, deadline=None)
@given(routings(), st.data())
def test_a_list_has_the_selections_of_a_rank_in_their_order(
    routing: tuple[Int32, int, int], data: st.DataObject
) -> None:
    idx, per_rank, world_size = routing
    rank = data.draw(st.integers(0, world_size - 1))
    weights = np.random.default_rng(1).normal(size=idx.shape).astype(np.float32)
    owned = np.flatnonzero((idx.ravel() >= 0) & (idx.ravel() // per_rank == rank))
    entries = np.full((len(owned) + 1, 4), GUARD, np.int32)
    counts = np.full(per_rank + 1, GUARD, np.int32)
    selected = Selected(int(entries.ctypes.data), int(counts.ctypes.data))
    count = _select()(_topk(idx, weights, per_rank, world_size), len(idx), rank, selected)
    local = idx.ravel()[owned] - rank * per_rank
    assert count == len(owned)
    assert np.array_equal(entries[:count, 0], owned)
    assert np.array_equal(entries[:count, 1], weights.ravel()[owned].view(np.int32))
    assert np.array_equal(entries[:count, 2], local)
    earlier = [int((local[:place] == expert).sum()) for place, expert in enumerate(local)]
    assert entries[:count, 3].tolist() == earlier
    assert np.array_equal(counts[:-1], np.bincount(local, minlength=per_rank))
    assert counts[-1] == GUARD
    assert (entries[count] == GUARD).all()


@given(st.lists(st.integers(0, 2**20), max_size=70), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_a_scan_of_words_adds_their_low_halves(counts: list[int], high: int) -> None:
    words = np.array([high << 32 | count for count in counts], np.int64)
    begins = np.full(len(counts) + 2, GUARD, np.int32)
    _scan()(int(words.ctypes.data), len(counts), int(begins.ctypes.data))
    assert begins.tolist() == [0, *np.cumsum(counts, dtype=np.int64).tolist(), GUARD]


@pytest.mark.parametrize("row_bytes", [16, 32, 48, 224, 384, 14336])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 8, 16])
def test_parts_of_a_row_follow_each_other_to_its_end(row_bytes: int, num_parts: int) -> None:
    begins = [_begin()(row_bytes, index, num_parts) for index in range(num_parts + 1)]
    assert begins[0] == 0
    assert begins[-1] == row_bytes
    assert begins == sorted(begins)
    assert all(begin % 32 == 0 for begin in begins[:-1])
    assert max(np.diff(begins)) <= row_bytes // num_parts + 48
