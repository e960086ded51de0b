"""Row copies and reductions of CPUs, byte for byte and bit for bit against plain NumPy."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from comms.atomics import fence_release
from comms.compiling import use_cache
from kernels.floats import BF16_NAN, fma, from_bf16, to_bf16
from kernels.isa.vectors import VECTOR_BYTES, copy_stream, reduce_stream

Bytes = npt.NDArray[np.uint8]
Bf16 = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]

#: All sizes up to 1 KB, those of the models' rows, and as much as one instruction moves.
SIZES = [*range(16, 1024 + 16, 16), 2880 * 2, 7392, 14336, 16384]
LINE = 64
GUARD = 256
MOST_ROWS = 22

ZERO, NEGATIVE_ZERO, ONE, TINY, NEGATIVE_TINY = 0x0000, 0x8000, 0x3F80, 0x0001, 0x8001
INF, NEGATIVE_INF, LARGEST, NEGATIVE_LARGEST = 0x7F80, 0xFF80, 0x7F7F, 0xFF7F
#: Signalling and quiet NaNs of both signs, with payloads.
NANS = (0x7F81, 0x7FBF, 0x7FC0, 0x7FFF, 0xFF81, 0xFFC0, 0xFFFF)
_SPECIAL = np.array(
    [ZERO, NEGATIVE_ZERO, TINY, NEGATIVE_TINY, 0x007F, 0x0080, 0x807F, INF, NEGATIVE_INF]
    + [LARGEST, NEGATIVE_LARGEST, *NANS],
    np.uint16,
)
_SPECIAL_WEIGHTS = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-45, 3e38, 1e-30, np.inf, -np.inf, np.nan], np.float32
)


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


def expected_sum(rows: Sequence[Bf16], weights: Float32 | None = None) -> Bf16:
    """Return the sum by the arithmetic of the oracle."""
    values = [from_bf16(row) for row in rows]
    with np.errstate(all="ignore"):
        total = values[0] if weights is None else weights[0] * values[0]
        for index in range(1, len(rows)):
            if weights is None:
                total = total + values[index]
            else:
                total = fma(weights[index], values[index], total)
    return to_bf16(total)


def make_rows(rng: np.random.Generator, num_rows: int, num_elements: int) -> list[Bf16]:
    """Return rows whose columns are one of: close numbers, any bits, special ones among them."""
    shape = (num_rows, num_elements)
    signs = rng.integers(0, 2, shape) << 15
    close = signs | (rng.integers(115, 140, shape) << 7) | rng.integers(0, 128, shape)
    huge = signs | (rng.integers(250, 255, shape) << 7) | rng.integers(0, 128, shape)
    small = signs | rng.integers(0, 0x0200, shape)
    anything = rng.integers(0, 1 << 16, shape)
    special = np.where(rng.random(shape) < 0.3, rng.choice(_SPECIAL, shape), close)
    kinds = rng.choice(5, num_elements, p=[0.5, 0.15, 0.1, 0.1, 0.15])
    rows: Bf16 = np.choose(kinds, [close, huge, small, anything, special]).astype(np.uint16)
    return list(rows)


def make_weights(rng: np.random.Generator, num_rows: int) -> Float32:
    """Return weights below 2, with a special one among them at times."""
    weights = 2 * rng.random(num_rows, np.float32)
    if rng.random() < 0.5:
        weights[rng.integers(num_rows)] = rng.choice(_SPECIAL_WEIGHTS)
    return weights


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


@pytest.mark.parametrize(
    ("column", "weights", "result"),
    [
        *(([nan], None, BF16_NAN) for nan in NANS),
        *(([nan], [1.0], BF16_NAN) for nan in NANS),
        *(([ONE, nan, ONE], None, BF16_NAN) for nan in NANS),
        ([INF, NEGATIVE_INF], None, BF16_NAN),
        ([INF, NEGATIVE_LARGEST], None, INF),
        ([NEGATIVE_INF, LARGEST], None, NEGATIVE_INF),
        ([INF], [0.0], BF16_NAN),
        ([ONE, INF], [1.0, -0.0], BF16_NAN),
        # Finite in FP32, halfway to what BF16 would hold next: to even, which is infinity.
        ([LARGEST, 0x7B00], None, INF),
        ([NEGATIVE_LARGEST, 0xFB00], None, NEGATIVE_INF),
        ([LARGEST, 0x7AFF], None, LARGEST),
        # The order of additions decides: FP32 overflows on the way.
        ([LARGEST, LARGEST, NEGATIVE_LARGEST], None, INF),
        ([LARGEST, NEGATIVE_LARGEST, LARGEST], None, LARGEST),
        ([NEGATIVE_ZERO], None, NEGATIVE_ZERO),
        ([NEGATIVE_ZERO, NEGATIVE_ZERO], None, NEGATIVE_ZERO),
        ([NEGATIVE_ZERO, ZERO], None, ZERO),
        ([NEGATIVE_ZERO], [1.0], NEGATIVE_ZERO),
        ([ONE], [-0.0], NEGATIVE_ZERO),
        # Subnormals are neither read nor written as zero.
        ([TINY], None, TINY),
        ([TINY, TINY], None, 0x0002),
        ([NEGATIVE_TINY, TINY, NEGATIVE_TINY], None, NEGATIVE_TINY),
        ([0x0002], [0.5], TINY),
        ([0x0080, 0x8001], None, 0x007F),
        ([0x7E80], [1e-40], 0x3C0B),
        # 1 + 2^-8 is halfway between BF16 numbers: to even, down here and up there.
        ([ONE, 0x3B80], None, ONE),
        ([0x3F81, 0x3B80], None, 0x3F82),
        # The first product is rounded, the second is not: 2^-30 is what they differ by.
        ([0xBF81, 0x3F81], [1 + 2.0**-23, 1 + 2.0**-23], 0x3080),
    ],
)
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
