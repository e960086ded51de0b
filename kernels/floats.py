"""Exact float arithmetic of the oracle: BF16 and e4m3 conversions, FP32 fused multiply-add."""

import ml_dtypes
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

#: Largest finite e4m3 value (OCP 8-bit floating point specification).
E4M3_MAX = np.float32(448)
#: The one NaN that a rounding to BF16 gives: IEEE 754 leaves payloads open, and 0xFFFF is poison.
BF16_NAN = np.uint16(0x7FFF)

# A float64 halfway between two normal float32 numbers has these 29 low bits.
_LOW_MASK, _LOW_HALF = np.uint64(0x1FFFFFFF), np.uint64(0x10000000)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


def to_bf16(values: Float32) -> npt.NDArray[np.uint16]:
    """Round to BF16, to nearest even; overflow gives infinity.

    Args:
        values: float32, any shape.

    Returns:
        BF16 bit patterns, same shape; every NaN is `BF16_NAN`.
    """
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = (bits >> 16) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrow = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        narrow[nan] = BF16_NAN
    return narrow


def from_bf16(bits: npt.NDArray[np.uint16]) -> Float32:
    """Return the float32 values, same shape, of BF16 bit patterns; exact, NaN payloads kept."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def to_e4m3(values: Float32) -> npt.NDArray[np.uint8]:
    """Round to e4m3fn, to nearest even, saturating at +-448 (infinities too); NaN stays NaN.

    Args:
        values: float32, any shape.

    Returns:
        e4m3fn bit patterns, same shape.
    """
    # ml_dtypes casts what overflows to NaN.
    codes = np.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    return codes.view(np.uint8)


def from_e4m3(bits: npt.NDArray[np.uint8]) -> Float32:
    """Return the float32 values, same shape, of e4m3fn bit patterns; exact."""
    values: Float32 = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """Return `a * b + c` rounded once to float32, to nearest even, subnormals kept.

    The product of two float32 numbers is exact in float64. Its sum with `c` may not be, and to
    round twice is wrong where the first rounding lands halfway between two float32 numbers; so
    there the first rounding is to odd (Boldo and Melquiond, IEEE Trans. Computers 57(4), 2008).

    Args:
        a: float32, broadcast against `b` and `c`.
        b: float32.
        c: float32.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        total = product + c
        double_rounded = (total.view(np.uint64) & _LOW_MASK) == _LOW_HALF
        double_rounded |= np.abs(total) < _FLOAT32_TINY
        if double_rounded.any():
            addend = np.broadcast_to(c, total.shape)[double_rounded].astype(np.float64)
            total[double_rounded] = _add_to_odd(
                np.broadcast_to(product, total.shape)[double_rounded], addend
            )
        return total.astype(np.float32)


def _add_to_odd(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = x + y
    x_part = total - y
    error = (x - x_part) + (y - (total - x_part))
    bits = total.view(np.int64).copy()
    even_and_inexact = (bits & 1 == 0) & (error != 0) & np.isfinite(total)
    away_from_zero = np.signbit(error) == np.signbit(total)
    bits += np.where(even_and_inexact, np.where(away_from_zero, 1, -1), 0)
    return bits.view(np.float64)
