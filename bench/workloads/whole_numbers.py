"""Rows whose sums are exact: for combines that add in an order and with roundings of their own."""

import numpy as np
import numpy.typing as npt

from kernels.floats import to_bf16
from kernels.protocol import MOST_WHOLE
from kernels.rows import RowLayout


def whole_numbers(rows: npt.NDArray[np.uint8], layout: RowLayout) -> npt.NDArray[np.uint8]:
    """Return rows of integers from -MOST_WHOLE to MOST_WHOLE that follow from the bits of others.

    There is no -0 among them: a sum with it depends on what it is added to.

    Args:
        rows: uint8 `(num_rows, layout.stride_bytes)` of BF16.
        layout: of these rows.

    Returns:
        uint8, the same shape, padding bytes zero.
    """
    bits = rows[:, : 2 * layout.moved].view(np.uint16)
    numbers = (bits % np.uint16(2 * MOST_WHOLE + 1)).astype(np.float32) - np.float32(MOST_WHOLE)
    whole = np.zeros_like(rows)
    whole[:, : 2 * layout.moved].view(np.uint16)[:] = to_bf16(numbers)
    return whole
