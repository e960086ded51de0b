"""Row records from values and back: FP8 with one scale per 128 elements, or BF16."""

import numpy as np
import numpy.typing as npt

from kernels.floats import E4M3_MAX, Float32, from_bf16, from_e4m3, to_bf16, to_e4m3
from kernels.rows import SCALE_GROUP, RowLayout

#: Least amax of a group, so that a group of zeros has a finite inverse scale (DeepEP's margin).
MIN_AMAX = np.float32(1e-4)


def quantize_rows(values: Float32, layout: RowLayout) -> npt.NDArray[np.uint8]:
    """Return row records as dispatch moves them, padding bytes zero.

    FP8: a group's scale is `max(amax, 1e-4) / 448`, its elements are `x * (1 / scale)` rounded to
    nearest even, saturating, each step in float32. BF16: rounded to nearest even, no scales.

    Args:
        values: float32 `(num_rows, layout.moved)`, finite.
        layout: where the parts of a row are.

    Returns:
        uint8 `(num_rows, layout.stride_bytes)`.
    """
    num_rows = len(values)
    rows = np.zeros((num_rows, layout.stride_bytes), np.uint8)
    if layout.dtype == "bf16":
        rows[:, : 2 * layout.moved] = to_bf16(values).view(np.uint8)
        return rows
    padded = np.zeros((num_rows, layout.num_scales * SCALE_GROUP), np.float32)
    padded[:, : layout.moved] = values
    grouped = padded.reshape(num_rows, layout.num_scales, SCALE_GROUP)
    scales = np.maximum(np.abs(grouped).max(axis=2), MIN_AMAX) / E4M3_MAX
    codes = to_e4m3(grouped * (np.float32(1) / scales)[:, :, None]).reshape(padded.shape)
    rows[:, : layout.moved] = codes[:, : layout.moved]
    rows[:, _scale_bytes(layout)] = scales.view(np.uint8)
    return rows


def dequantize_rows(rows: npt.NDArray[np.uint8], layout: RowLayout) -> Float32:
    """Return the values of row records.

    Args:
        rows: uint8 `(num_rows, layout.stride_bytes)`.
        layout: where the parts of a row are.

    Returns:
        float32 `(num_rows, layout.moved)`; an FP8 element is multiplied by its scale in float32.
    """
    if layout.dtype == "bf16":
        return from_bf16(np.ascontiguousarray(rows[:, : 2 * layout.moved]).view(np.uint16))
    scales = np.ascontiguousarray(rows[:, _scale_bytes(layout)]).view(np.float32)
    per_element = np.repeat(scales, SCALE_GROUP, axis=1)[:, : layout.moved]
    return from_e4m3(np.ascontiguousarray(rows[:, : layout.moved])) * per_element


def _scale_bytes(layout: RowLayout) -> slice:
    return slice(layout.data_bytes, layout.data_bytes + 4 * layout.num_scales)
