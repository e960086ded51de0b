"""The row records that dispatch and combine move: element data, FP8 scales, padding."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Dtype = Literal["fp8", "bf16"]

#: Elements that share one FP8 scale (DeepSeek-V3 technical report, section 3.3).
SCALE_GROUP = 128
#: Elements moved from the head and from the tail of a row when a prefix is asked for without a
#: size.
PREFIX_HEAD, PREFIX_TAIL = 128, 64


def pad16(num_bytes: int) -> int:
    """Round bytes up to what a lane accesses at once, the alignment of rows and tables."""
    return _pad(num_bytes, 16)


def _pad(num_bytes: int, multiple: int) -> int:
    return -(-num_bytes // multiple) * multiple


def row_bytes(hidden: int, dtype: Dtype) -> int:
    """Bytes of one padded row: data to 16 B, FP32 scales when FP8, the whole to 32 B."""
    if dtype == "bf16":
        return _pad(pad16(2 * hidden), 32)
    num_scales = -(-hidden // SCALE_GROUP)
    return _pad(pad16(hidden) + 4 * num_scales, 32)


def logical_row_bytes(hidden: int, dtype: Dtype) -> int:
    """Bytes of one row without padding."""
    if dtype == "bf16":
        return 2 * hidden
    return hidden + 4 * -(-hidden // SCALE_GROUP)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the parts of a row are.

    Attributes:
        hidden: elements of the model's row.
        dtype: `"fp8"` (e4m3 with FP32 scales) or `"bf16"`.
        moved: elements that are really stored and moved, at most `hidden`; costs and byte counts
            are always those of `hidden` elements.
    """

    hidden: int
    dtype: Dtype
    moved: int

    @property
    def full_bytes(self) -> int:
        """Physical bytes of the model's row, padding included."""
        return row_bytes(self.hidden, self.dtype)

    @property
    def logical_bytes(self) -> int:
        """Bytes of the model's row, padding excluded."""
        return logical_row_bytes(self.hidden, self.dtype)

    @property
    def stride_bytes(self) -> int:
        """Bytes between rows in memory, which are also the bytes copied."""
        return row_bytes(self.moved, self.dtype)

    @property
    def data_bytes(self) -> int:
        """Bytes of element data in memory, padded to 16 B; FP8 scales follow them."""
        return _pad(self.moved * (2 if self.dtype == "bf16" else 1), 16)

    @property
    def num_scales(self) -> int:
        """FP32 scales stored in memory; 0 for BF16."""
        return -(-self.moved // SCALE_GROUP) if self.dtype == "fp8" else 0

    def kept_elements(self) -> np.ndarray:
        """Return the indices in `[0, hidden)` of the elements that are stored, int64 `(moved,)`."""
        tail = min(PREFIX_TAIL, self.moved // 2) if self.moved < self.hidden else 0
        head = np.arange(self.moved - tail, dtype=np.int64)
        return np.concatenate([head, np.arange(self.hidden - tail, self.hidden, dtype=np.int64)])
