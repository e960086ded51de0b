"""Row copies and reductions of CPUs, byte for byte and bit for bit against plain NumPy."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from bf16_rows import SPECIAL_SUMS, Bf16, Float32, expected_sum, make_rows, make_weights
from numba import njit

from comms.atomics import fence_release
from comms.compiling import use_cache
from kernels.isa.vectors import VECTOR_BYTES, copy_stream, reduce_stream

Bytes = npt.NDArray[np.uint8]

#: All sizes up to 1 KB, those of the models' rows, and as much as one instruction moves.
SIZES = [*range(16, 1024 + 16, 16), 2880 * 2, 7392, 14336, 16384]
LINE = 64
GUARD = 256
MOST_ROWS = 22


@cache
def _copy() -> Callable[[int, int, int], None]:
    use_cache((Path(__file__),))

    def copy(dst: int, src: int, num_bytes: int) -> None:
        copy_stream(dst, src, num_bytes)
        fence_release()

    compiled: Callable[[int, int, int], None] = njit("void(int64, int64, int64)", cache=True)(copy)
    return compiled


@cache
def _reduce() -> Callable[[int, int, int, int, int], None]:
    use_cache((Path(__file__),))

    def reduce(out: int, rows: int, num_rows: int, weights: int, num_bytes: int) -> None:
        reduce_stream(out, rows, num_rows, weights, num_bytes)
        fence_release()

    compiled: Callable[[int, int, int, int, int], None] = njit(
        "void(int64, int64, int64, int64, int64)", cache=True
    )(reduce)
    return compiled


def aligned(num_bytes: int) -> Bytes:
    """Return zeros that begin at a cache line."""
    room = np.zeros(num_bytes + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + num_bytes]


def reduced(rows: Sequence[Bf16], weights: Float32 | None = None, *, out_at: int = 0) -> Bf16:
    """Return what `reduce_stream` makes of rows of equal size, and see what else it writes."""
    num_bytes = rows[0].nbytes
    out = aligned(GUARD + num_bytes + GUARD)
    out[:] = 0xA5
    # No two rows begin alike in their cache lines.
    stride = -(-num_bytes // LINE) * LINE + 16
    held = aligned(len(rows) * stride)
    addresses = np.zeros(len(rows), np.int64)
    for index, row in enumerate(rows):
        held[index * stride : index * stride + num_bytes] = row.view(np.uint8)
        addresses[index] = held.ctypes.data + index * stride
    start = GUARD // 2 + out_at
    weights_addr = 0 if weights is None else int(weights.ctypes.data)
    address = int(out.ctypes.data) + start
    _reduce()(address, int(addresses.ctypes.data), len(rows), weights_addr, num_bytes)
    assert (out[:start] == 0xA5).all()
    assert (out[start + num_bytes :] == 0xA5).all()
    return out[start : start + num_bytes].view(np.uint16)


def test_copies_are_exact_and_write_nothing_else() -> None:
    copy = _copy()
    rng = np.random.default_rng(1)
    most = max(SIZES)
    source = aligned(GUARD + most + GUARD)
    target = aligned(GUARD + most + GUARD)
    source[:] = rng.integers(0, 256, len(source))
    before = rng.integers(0, 256, len(target)).astype(np.uint8)
    for num_bytes in [0, *SIZES]:
        seen = target[: GUARD + num_bytes + GUARD]
        for to in range(GUARD // 2, GUARD // 2 + LINE, 16):
            for start in range(0, LINE, 16):
                seen[:] = before[: len(seen)]
                copy(int(target.ctypes.data) + to, int(source.ctypes.data) + start, num_bytes)
                expected = before[: len(seen)].copy()
                expected[to : to + num_bytes] = source[start : start + num_bytes]
                assert np.array_equal(seen, expected), (num_bytes, to, start)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_sums_are_exact_in_every_bit(is_weighted: bool) -> None:
    rng = np.random.default_rng(2)
    for num_bytes in SIZES:
        for num_rows in range(1, MOST_ROWS + 1):
            rows = make_rows(rng, num_rows, num_bytes // 2)
            weights = make_weights(rng, num_rows) if is_weighted else None
            found = reduced(rows, weights, out_at=VECTOR_BYTES * (num_rows % 2))
            wrong = np.flatnonzero(found != expected_sum(rows, weights))
            assert not len(wrong), (num_bytes, num_rows, wrong[:8])


@pytest.mark.parametrize("weights_addr", [0, 16])
def test_a_sum_of_no_rows_is_zero_and_reads_no_weight(weights_addr: int) -> None:
    for num_bytes in SIZES:
        out = aligned(num_bytes + 2 * GUARD)
        out[:] = 0xA5
        _reduce()(int(out.ctypes.data) + GUARD, 0, 0, weights_addr, num_bytes)
        assert (out[GUARD : GUARD + num_bytes] == 0).all()
        assert (out[:GUARD] == 0xA5).all()
        assert (out[GUARD + num_bytes :] == 0xA5).all()


@pytest.mark.parametrize(("column", "weights", "result"), SPECIAL_SUMS)
def test_special_values(column: list[int], weights: list[float] | None, result: int) -> None:
    rows = [np.full(104, bits, np.uint16) for bits in column]
    found = reduced(rows, None if weights is None else np.array(weights, np.float32))
    assert set(found.tolist()) == {int(result)}


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("num_rows", [2, 3, 8, 22])
def test_a_wrong_order_and_a_row_too_few_are_noticed(num_rows: int, is_weighted: bool) -> None:
    rng = np.random.default_rng(3)
    rows = make_rows(rng, num_rows, 2880)
    weights = 2 * rng.random(num_rows, np.float32) if is_weighted else None
    right = expected_sum(rows, weights)

    def taken(order: list[int]) -> Bf16:
        return reduced([rows[i] for i in order], None if weights is None else weights[order])

    order = list(range(num_rows))
    assert np.array_equal(taken(order), right)
    assert not np.array_equal(taken(order[:-1]), right)
    assert not np.array_equal(taken(order[1:]), right)
    assert not np.array_equal(taken([*order, order[-1]]), right)
    # Two numbers have one sum in either order, but not where the first product is rounded.
    if num_rows > 2 or is_weighted:
        assert not np.array_equal(taken(order[::-1]), right)
    if num_rows > 2:
        assert not np.array_equal(taken([*order[:-2], order[-1], order[-2]]), right)
    if weights is not None:
        assert not np.array_equal(reduced(rows, weights[::-1].copy()), right)
