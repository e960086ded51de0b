"""BF16 rows that are awkward to add, and their sums by the arithmetic of the oracle."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernels.floats import BF16_NAN, fma, from_bf16, to_bf16

Bf16 = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]

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
#: A column of BF16 rows, weights, and their sum.
SPECIAL_SUMS: list[tuple[list[int], list[float] | None, int]] = [
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
]


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
