"""Rounding and quantisation of the GPU's header on 32 lanes, against the oracle; by arithmetic and
by what stands for the conversion of GPUs that have one."""

import numpy as np
import numpy.typing as npt
import pytest
from bf16_rows import INF, LARGEST, NANS, NEGATIVE_INF, NEGATIVE_ZERO, TINY
from host_build import Mutation
from host_lanes import at, launch
from host_world import windows

from kernels.floats import Float32, from_bf16, to_bf16, to_e4m3
from kernels.fp8 import quantize_rows
from kernels.rows import RowLayout

EITHER = pytest.mark.parametrize("defines", [(), ("EP_HOST_FP8",)], ids=["computed", "converted"])
GUARD, FILL = 64, 0xA5
E4M3_NAN = 0x7F


def _converted(values: Float32, defines: tuple[str, ...], mutation: Mutation | None = None) -> None:
    """Convert pairs of values to BF16 and e4m3, and compare with the oracle."""
    count = len(values) // 2
    memory = windows(1, 2 * values.nbytes)
    memory[0, : values.nbytes] = values.view(np.uint8)
    step = ("convert", at(values.nbytes), at(0), count)
    _, outcome = launch({(0, 0, 0): [step]}, memory, defines=defines, mutation=mutation)
    assert outcome.is_clean, outcome
    got = memory[0, values.nbytes :].copy().view(np.uint32).reshape(count, 2)
    pairs = values.reshape(count, 2)
    narrow = to_bf16(pairs).astype(np.uint32)
    _equal(got[:, 0], narrow[:, 0] | narrow[:, 1] << 16, pairs)
    with np.errstate(invalid="ignore"):
        codes = to_e4m3(pairs).astype(np.uint32)
    # The oracle leaves a NaN's sign; GPUs have one NaN.
    codes[np.isnan(pairs)] = E4M3_NAN
    _equal(got[:, 1], codes[:, 0] | codes[:, 1] << 8, pairs)


def _equal(got: npt.NDArray[np.uint32], wanted: npt.NDArray[np.uint32], pairs: Float32) -> None:
    wrong = np.flatnonzero(got != wanted)
    assert not len(wrong), (pairs[wrong[:4]], got[wrong[:4]], wanted[wrong[:4]])


def _bits_around_ties() -> Float32:
    """Return all upper halves of floats, with nothing, something, almost all and a half below.

    e4m3 keeps 3 of 23 bits, and fewer below 2^-6, BF16 keeps 7: every tie of either, in each sign,
    has a lower half of 0 or 0x8000, and its neighbours are among these.
    """
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (upper[:, None] | lower).reshape(-1)
    return np.random.default_rng(1).permutation(bits).view(np.float32)


@EITHER
def test_floats_of_all_upper_halves_are_rounded(defines: tuple[str, ...]) -> None:
    _converted(_bits_around_ties(), defines)


def _quantized(
    rows: npt.NDArray[np.uint16], defines: tuple[str, ...], mutation: Mutation | None = None
) -> npt.NDArray[np.uint8]:
    """Quantise rows of BF16 bits; nothing else is written.

    Returns:
        Row records, uint8, with padding 0.
    """
    num_rows, hidden = rows.shape
    layout = RowLayout(hidden, "fp8", hidden)
    stride_in = -(-2 * hidden // 16) * 16
    stride_out = -(-layout.stride_bytes // 16) * 16 + GUARD
    memory = windows(1, num_rows * (stride_in + stride_out), FILL)
    begin = num_rows * stride_in
    sources = memory[0, :begin].reshape(num_rows, stride_in)
    sources[:, : 2 * hidden] = rows.view(np.uint8).reshape(num_rows, -1)
    steps = [
        (
            "quantize",
            at(begin + index * stride_out),
            at(begin + index * stride_out + layout.data_bytes),
            at(index * stride_in),
            hidden,
        )
        for index in range(num_rows)
    ]
    _, outcome = launch({(0, 0, 0): steps}, memory, defines=defines, mutation=mutation)
    assert outcome.is_clean, outcome
    records = memory[0, begin:].reshape(num_rows, stride_out)
    is_written = np.zeros(stride_out, bool)
    is_written[:hidden] = True
    is_written[layout.data_bytes : layout.data_bytes + 4 * layout.num_scales] = True
    assert (records[:, ~is_written] == FILL).all()
    return np.where(is_written, records, 0)[:, : layout.stride_bytes]


def _rows(rng: np.random.Generator, num_rows: int, hidden: int) -> npt.NDArray[np.uint16]:
    """Return finite rows whose groups are of all magnitudes, of zeros, subnormal, or of ties."""
    shape = num_rows, hidden
    signs = rng.integers(0, 2, shape) << 15
    of_group = np.repeat(rng.integers(1, 255, (num_rows, hidden // 128 + 1)), 128, axis=1)
    exponents = np.clip(of_group[:, :hidden] - rng.integers(0, 12, shape), 0, 254)
    wide = signs | exponents << 7 | rng.integers(0, 128, shape)
    subnormal = signs | rng.integers(0, 128, shape)
    # Multiples of a power of two below 448, which is in each group: scales of one.
    ties = to_bf16(rng.integers(-400, 400, shape).astype(np.float32) / 16)
    ties[:, ::128] = to_bf16(np.float32([448]))
    kinds = np.repeat(rng.choice(4, (num_rows, hidden // 128 + 1), p=[0.5, 0.1, 0.1, 0.3]), 128, 1)
    zeros = np.where(signs != 0, NEGATIVE_ZERO, 0)
    rows = np.choose(kinds[:, :hidden], [wide, subnormal, zeros, ties])
    return rows.astype(np.uint16)


HIDDENS = [1, 2, 3, 4, 5, 7, 8, 64, 126, 127, 128, 129, 130, 255, 256, 257, 260, 2880, 4095, 7168]


@EITHER
@pytest.mark.parametrize("hidden", HIDDENS)
def test_rows_are_quantised_as_the_oracle_does(hidden: int, defines: tuple[str, ...]) -> None:
    rows = _rows(np.random.default_rng(hidden), 6 if hidden > 1000 else 24, hidden)
    expected = quantize_rows(from_bf16(rows), RowLayout(hidden, "fp8", hidden))
    got = _quantized(rows, defines)
    wrong = np.argwhere(got != expected)
    assert not len(wrong), wrong[:8]


@EITHER
@pytest.mark.parametrize(
    ("element", "code", "scale"),
    [
        (0, 0x00, 1e-4),
        (NEGATIVE_ZERO, 0x80, 1e-4),
        (TINY, 0x00, 1e-4),
        (LARGEST, 0x7E, from_bf16(np.array([LARGEST], np.uint16))[0]),
        # 1e-4 is the least amax: what is below has fewer bits.
        (0x3860, 0x77, 1e-4),
    ],
)
def test_a_group_of_one_value(
    element: int, code: int, scale: float, defines: tuple[str, ...]
) -> None:
    record = _quantized(np.full((1, 128), element, np.uint16), defines)[0]
    assert set(record[:128].tolist()) == {code}
    assert record[128:132].view(np.float32)[0] == np.float32(scale) / np.float32(448)


@EITHER
@pytest.mark.parametrize("nan", NANS)
def test_a_nan_is_one_and_leaves_the_other_elements(nan: int, defines: tuple[str, ...]) -> None:
    rows = _rows(np.random.default_rng(7), 1, 256)
    rows[0, 77] = 0
    clean = _quantized(rows, defines)[0]
    rows[0, 77] = nan
    record = _quantized(rows, defines)[0]
    assert record[77] == E4M3_NAN
    rest = np.arange(len(record)) != 77
    assert np.array_equal(record[rest], clean[rest])


@EITHER
def test_an_infinity_does_not_make_finite_elements_infinite(defines: tuple[str, ...]) -> None:
    rows = np.full((1, 128), 0x3F80, np.uint16)
    rows[0, 3], rows[0, 9] = INF, NEGATIVE_INF
    record = _quantized(rows, defines)[0]
    # The scale is infinite, its inverse zero; infinity times zero is no number.
    assert record[3] == record[9] == E4M3_NAN
    assert np.isinf(record[128:132].view(np.float32)[0])
    assert set(np.delete(record[:128], [3, 9]).tolist()) == {0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("magnitude >= as_bits(464.f)", "magnitude >= as_bits(512.f)"),
        ("(magnitude + 0x7ffffu + odd) >> 20", "(magnitude + 0x80000u) >> 20"),
        ("if (magnitude > 0x7f800000u) return 0x7fu;", ""),
        ("as_bits(add_f32(as_float(magnitude), 16384.f)) - as_bits(16384.f)", "0u"),
        ("((127u - 7u) << 3)", "((127u - 8u) << 3)"),
    ],
)
def test_mistakes_in_rounding_are_noticed(old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        _converted(_bits_around_ties(), (), Mutation("cuh/fp8.cuh", old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("first + 4 <= count", "true"),
        ("left < GROUP_ELEMENTS ? static_cast<int>(left) : GROUP_ELEMENTS", "GROUP_ELEMENTS"),
        ("float amax = LEAST_AMAX;", "float amax = 0.f;"),
        ("multiply_f32(values[index], inverse)", "divide_f32(values[index], factor)"),
        ("& 0x7fffffffu));", "));"),
        ("  amax = max_lanes(amax);\n", ""),
    ],
)
def test_mistakes_in_quantisation_are_noticed(old: str, new: str) -> None:
    rows = _rows(np.random.default_rng(3), 24, 259)
    expected = quantize_rows(from_bf16(rows), RowLayout(259, "fp8", 259))
    assert np.array_equal(_quantized(rows, ()), expected)
    with pytest.raises(AssertionError):
        assert np.array_equal(_quantized(rows, (), Mutation("cuh/fp8.cuh", old, new)), expected)
