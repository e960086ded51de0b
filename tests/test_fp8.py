"""Narrow floats, row records and the fused multiply-add against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.floats import fma, from_bf16, from_e4m3, to_bf16, to_e4m3
from kernels.fp8 import dequantize_rows, quantize_rows
from kernels.rows import Dtype, RowLayout

FLOAT32_BITS = st.integers(0, 2**32 - 1)


def float32_of(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def e4m3_magnitude(code: int) -> Fraction:
    exponent, mantissa = code >> 3, code & 7
    if exponent == 0:
        return Fraction(mantissa, 8) / 2**6
    return Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7)


def slow_e4m3(value: float) -> int:
    """Nearest of the 127 finite magnitudes, ties to the even code, saturating."""
    sign = 0x80 if math.copysign(1, value) < 0 else 0
    if math.isinf(value):
        return sign | 0x7E
    exact = abs(Fraction(value))
    return sign | min(range(0x7F), key=lambda code: (abs(e4m3_magnitude(code) - exact), code & 1))


def round_exactly(value: Fraction, mantissa_bits: int) -> float:
    """Round to nearest even in a binary format with float32's exponents."""
    if value == 0:
        return 0.0
    magnitude, exponent = abs(value), -126
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - mantissa_bits)
    rounded = round(magnitude / unit) * unit
    result = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return math.copysign(result, value)


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@settings(deadline=None)
@given(FLOAT32_BITS)
@example(bits_of(-0.0))
@example(bits_of(2.0**-10))
@example(bits_of(3 * 2.0**-10))
@example(bits_of(-(2.0**-10) * 1.0000001))
@example(bits_of(447.99))
def test_e4m3_is_the_nearest_value(bits: int) -> None:
    value = float32_of(bits)
    code = int(to_e4m3(np.array([value]))[0])
    if np.isnan(value):
        assert code & 0x7F == 0x7F
    else:
        assert code == slow_e4m3(float(value))


def test_e4m3_ties_go_to_the_even_code() -> None:
    for code in range(0x7E):
        middle = float((e4m3_magnitude(code) + e4m3_magnitude(code + 1)) / 2)
        values = np.array([middle, np.nextafter(np.float32(middle), np.float32(0))], np.float32)
        above = np.nextafter(np.float32(middle), np.float32(1000))
        even = code if code % 2 == 0 else code + 1
        assert to_e4m3(values).tolist() == [even, code]
        assert to_e4m3(-values).tolist() == [even | 0x80, code | 0x80]
        assert to_e4m3(np.array([above])).tolist() == [code + 1]


@pytest.mark.parametrize("value", [448.0, 463.9, 464.0, 464.1, 480.0, 1e30, math.inf])
def test_e4m3_saturates(value: float) -> None:
    assert to_e4m3(np.array([value, -value], np.float32)).tolist() == [0x7E, 0xFE]


def test_e4m3_values_of_every_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = from_e4m3(codes)
    assert np.isnan(values[[0x7F, 0xFF]]).all()
    for code in range(0x7F):
        assert Fraction(float(values[code])) == e4m3_magnitude(code)
        assert Fraction(float(values[code | 0x80])) == -e4m3_magnitude(code)
    assert np.signbit(values[0x80])


@settings(deadline=None)
@given(FLOAT32_BITS)
@example(bits_of(1 + 2.0**-8))
@example(bits_of(1 + 3 * 2.0**-8))
@example(bits_of(2.0**-134))
@example(bits_of(3 * 2.0**-134))
@example(0x7F7F8000)
@example(0x7F7F7FFF)
@example(0x80000001)
@example(0xFF800000)
@example(0x7F800001)
@example(0xFFFFFFFF)
def test_bf16_is_the_nearest_value(bits: int) -> None:
    value = float32_of(bits)
    narrow = to_bf16(np.array([value]))
    if np.isnan(value):
        assert narrow[0] == 0x7FFF
        return
    exact = float(value) if np.isinf(value) else round_exactly(Fraction(float(value)), 7)
    expected = math.copysign(exact, float(value))
    assert from_bf16(narrow).view(np.uint32)[0] == bits_of(expected)


def test_bf16_survives_a_round_trip() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    back = to_bf16(from_bf16(bits))
    is_nan = (bits & 0x7FFF) > 0x7F80
    assert np.array_equal(back[~is_nan], bits[~is_nan])
    assert (back[is_nan] == 0x7FFF).all()


def exact_fma(a: np.float32, b: np.float32, c: np.float32) -> float:
    return round_exactly(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)), 23)


def fma_of(a: float | np.float32, b: float | np.float32, c: float | np.float32) -> float:
    arrays = (np.array([value], np.float32) for value in (a, b, c))
    return float(fma(*arrays)[0])


@settings(deadline=None)
@given(FLOAT32_BITS, FLOAT32_BITS, FLOAT32_BITS)
def test_fma_of_any_floats(a_bits: int, b_bits: int, c_bits: int) -> None:
    a, b, c = (float32_of(bits) for bits in (a_bits, b_bits, c_bits))
    if not np.isfinite([a, b, c]).all():
        return
    assert fma_of(a, b, c) == exact_fma(a, b, c)


@settings(deadline=None)
@given(
    st.integers(2**23, 2**24 - 1),
    st.integers(128, 255),
    st.integers(-(2**24), 2**24),
    st.integers(-40, 40),
    st.sampled_from([0, -60, -130]),
)
def test_fma_of_a_bf16_row_near_the_sum(
    weight: int, row: int, total: int, shift: int, scale: int
) -> None:
    a = np.float32(weight * 2.0 ** (scale - 23))
    b = np.float32(row * 2.0**-7)
    c = np.float32(total * 2.0 ** (scale - 23) * 2.0**shift)
    assert fma_of(a, b, c) == exact_fma(a, b, c)


# 2**24 + 1 = 97 * 257 * 673 lies halfway between two float32 numbers, and 97 is a BF16 number.
DOUBLE_ROUNDED = [
    (172961.0, 97.0, 2.0**-60),
    (-172961.0, 97.0, -(2.0**-60)),
    (172961.0, 97.0, 2.0**-149),
    (1 + 2.0**-23, 1 - 2.0**-23, 2.0**24 + 2),
    (1 + 2.0**-23, -(1 - 2.0**-23), -(2.0**24) - 2),
    (2.0**-75 * (1 + 2.0**-23), 2.0**-75 * (1 - 2.0**-23), 2.0**-127 + 2.0**-149),
    (2.0**52 * (1 + 2.0**-23), 2.0**51 * (1 - 2.0**-23), (2.0**24 - 1) * 2.0**104),
]


@pytest.mark.parametrize(("a", "b", "c"), DOUBLE_ROUNDED)
def test_fma_where_two_roundings_are_wrong(a: float, b: float, c: float) -> None:
    with np.errstate(over="ignore"):
        rounded_twice = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    exact = exact_fma(np.float32(a), np.float32(b), np.float32(c))
    assert rounded_twice != exact
    assert fma_of(a, b, c) == exact


def test_fma_ties_that_are_exact_go_to_even() -> None:
    assert fma_of(172961.0, 97.0, 0.0) == 2.0**24
    assert fma_of(172961.0, 97.0, 2.0) == 2.0**24 + 4


def test_fma_of_zeros_infinities_and_nan() -> None:
    assert np.signbit(fma_of(1.0, -0.0, -0.0))
    assert not np.signbit(fma_of(1.0, -0.0, 0.0))
    assert fma_of(2.0**127, 2.0, -1.0) == np.inf
    assert fma_of(1.0, -np.inf, 5.0) == -np.inf
    assert np.isnan(fma_of(1.0, np.inf, -np.inf))
    assert np.isnan(fma_of(0.0, np.inf, 1.0))
    assert np.isnan(fma_of(1.0, np.nan, 1.0))
    assert fma_of(2.0**-149, 0.75, 0.0) == np.float32(2.0**-149)


def slow_quantize(values: npt.NDArray[np.float32], layout: RowLayout) -> bytes:
    """One row, element by element."""
    codes, scales = bytearray(), bytearray()
    for start in range(0, len(values), 128):
        group = values[start : start + 128]
        scale = max(max(abs(value) for value in group), np.float32(1e-4)) / np.float32(448)
        inverse = np.float32(1) / scale
        codes += bytes(slow_e4m3(float(value * inverse)) for value in group)
        scales += scale.tobytes()
    codes += bytes(-len(codes) % 16)
    record = bytes(codes + scales)
    return record + bytes(-len(record) % 32)


@pytest.mark.parametrize(("hidden", "moved"), [(7168, 192), (2880, 2880), (7, 7), (129, 129)])
def test_fp8_rows(hidden: int, moved: int) -> None:
    rng = np.random.default_rng(moved)
    layout = RowLayout(hidden, "fp8", moved)
    values = rng.standard_normal((3, moved), dtype=np.float32)
    values *= np.array([[1], [1e-5], [1e30]], np.float32)
    rows = quantize_rows(values, layout)
    assert rows.shape == (3, layout.stride_bytes)
    for row, of_row in zip(rows, values, strict=True):
        assert row.tobytes() == slow_quantize(of_row, layout)


def test_fp8_tail_group_has_its_own_scale() -> None:
    layout = RowLayout(130, "fp8", 130)
    values = np.ones((1, 130), np.float32)
    values[0, 128:] = [-2, 0.5]
    rows = quantize_rows(values, layout)
    scales = rows[0, 144:152].view(np.float32)
    assert scales.tolist() == [np.float32(1) / np.float32(448), np.float32(2) / np.float32(448)]
    assert rows[0, 127:130].tolist() == [0x7E, 0xFE, to_e4m3(np.array([112], np.float32))[0]]


def test_fp8_elements_are_multiplied_by_the_inverse_of_the_scale() -> None:
    # Divided by the scale, 78.75 would round to 90.
    rows = quantize_rows(np.array([[1680.0, 78.75]], np.float32), RowLayout(2, "fp8", 2))
    assert rows[0, :2].tolist() == [0x7E, 91]


def test_a_row_of_zeros_has_the_least_scale() -> None:
    layout = RowLayout(128, "fp8", 128)
    rows = quantize_rows(np.array([[0.0, -0.0] * 64], np.float32), layout)
    assert rows[0, :2].tolist() == [0x00, 0x80]
    assert rows[0, 128:132].view(np.float32)[0] == np.float32(1e-4) / np.float32(448)


@pytest.mark.parametrize("moved", [1, 7, 192])
def test_bf16_rows(moved: int) -> None:
    layout = RowLayout(7168, "bf16", moved)
    values = np.random.default_rng(0).standard_normal((5, moved), dtype=np.float32)
    rows = quantize_rows(values, layout)
    assert rows.shape == (5, layout.stride_bytes)
    assert np.array_equal(rows[:, : 2 * moved], to_bf16(values).view(np.uint8))
    assert not rows[:, 2 * moved :].any()
    assert np.array_equal(dequantize_rows(rows, layout), from_bf16(to_bf16(values)))


@pytest.mark.parametrize("moved", [7, 192, 2880])
def test_fp8_values_come_back_within_half_a_step(moved: int) -> None:
    layout = RowLayout(moved, "fp8", moved)
    values = np.random.default_rng(1).standard_normal((4, moved), dtype=np.float32)
    back = dequantize_rows(quantize_rows(values, layout), layout)
    assert back.shape == values.shape
    # Half a step is 2**-4 of a normal value and 2**-10 scales of a subnormal one.
    step = np.maximum(np.abs(values) * 2.0**-4, np.abs(values).max() / 448 * 2.0**-10)
    assert (np.abs(back - values) <= step * 1.0001).all()
    assert not np.array_equal(back, values)


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_no_rows(dtype: Dtype) -> None:
    layout = RowLayout(2880, dtype, 192)
    rows = quantize_rows(np.zeros((0, 192), np.float32), layout)
    assert rows.shape == (0, layout.stride_bytes)
    assert dequantize_rows(rows, layout).shape == (0, 192)
