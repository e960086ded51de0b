"""What an exchange carries: sizes, routing and the rows themselves, all from a seed."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.workloads.gate import Gate
from bench.workloads.presets import preset
from bench.workloads.random_bits import Purpose, stream_key, words_at
from bench.workloads.routing import Routing, generate, parse_routing
from bench.workloads.routing_files import load_matrix, load_topk, matrix_rows
from comms.errors import UsageError
from kernels.fp8 import quantize_rows
from kernels.rows import PREFIX_HEAD, PREFIX_TAIL, SCALE_GROUP, Dtype, RowLayout, row_bytes

Bytes = npt.NDArray[np.uint8]

#: Distinct rows behind all rows of a check; that many neighbouring tokens of a rank use each once.
POOL_ROWS = 512
#: What the first elements of a row say of it, digits of base 64 from the least: FP8 codes 0x00 to
#: 0x3f, integers 0 to 63 in BF16, none of them NaN or poison.
_STAMP = ("row", "rank", "row", "rank", "row", "row", "salt", "salt")
_DIGIT_BITS = 6


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes and contents of one exchange.

    A routing from a file brings sizes of its own, which replace those given: `num_topk`, and
    `num_tokens` where the file says which rank has which token; a matrix brings `num_experts`, too,
    and no groups.

    Attributes:
        preset: name of the preset that the sizes started from.
        num_tokens: tokens of each rank, or the most of any rank.
        hidden: elements of a row.
        num_experts: experts of the layer.
        num_topk: experts of a token.
        num_groups: groups that experts are routed by, 0 for none.
        num_topk_groups: groups that a token may use.
        dispatch_dtype: `"fp8"` or `"bf16"`.
        combine_dtype: `"bf16"`.
        routing: spec string, one of `bench.workloads.routing.ROUTINGS`.
        seed: the same seed gives the same routing and rows.
        masked_ratio: share of each rank's selections that become -1.
        prefix: elements of each row that really move, None for all.
    """

    preset: str
    num_tokens: int
    hidden: int
    num_experts: int
    num_topk: int
    num_groups: int = 0
    num_topk_groups: int = 0
    dispatch_dtype: Dtype = "fp8"
    combine_dtype: Literal["bf16"] = "bf16"
    routing: str = "uniform"
    seed: int = 0
    masked_ratio: float = 0.0
    prefix: int | None = PREFIX_HEAD + PREFIX_TAIL

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UsageError(f"hidden must be at least 1, got {self.hidden}")
        if self.prefix is not None and self.prefix < 1:
            raise UsageError(f"prefix must be at least 1 element or full, got {self.prefix}")
        if self.dispatch_dtype not in ("fp8", "bf16"):
            raise UsageError(f"dispatch_dtype must be fp8 or bf16, got {self.dispatch_dtype!r}")
        if self.combine_dtype != "bf16":
            raise UsageError(f"combine_dtype must be bf16, got {self.combine_dtype!r}")
        for name, size in self._sizes_of_file().items():
            object.__setattr__(self, name, size)

    @classmethod
    def from_preset(cls, name: str, num_tokens: int, routing: str = "uniform") -> "Workload":
        """Return the workload of a preset; other axes by `dataclasses.replace`.

        Raises:
            UsageError: no such preset, or a routing that cannot be read.
        """
        model = preset(name)
        sizes = cls(
            preset=name,
            num_tokens=num_tokens,
            hidden=model.hidden,
            num_experts=model.num_experts,
            num_topk=model.num_topk,
            num_groups=model.num_groups,
            num_topk_groups=model.num_topk_groups,
        )
        return replace(sizes, routing=routing)

    def topk(self, world_size: int, ranks_per_node: int) -> Routing:
        """Return the experts of every token of a world.

        Raises:
            UsageError: the routing cannot be met for these sizes.
        """
        if ranks_per_node < 1 or world_size % ranks_per_node:
            raise UsageError(
                f"world_size {world_size} must be a multiple of ranks_per_node {ranks_per_node}"
            )
        gate = Gate(
            world_size=world_size,
            num_tokens=self.num_tokens,
            num_experts=self.num_experts,
            num_topk=self.num_topk,
            num_groups=self.num_groups,
            num_topk_groups=self.num_topk_groups,
            row_bytes=row_bytes(self.hidden, self.dispatch_dtype),
            seed=self.seed,
            masked_ratio=self.masked_ratio,
        )
        return generate(parse_routing(self.routing), gate)

    def x(self, rank: int, num_tokens: int, layout: RowLayout, salt: int) -> Bytes:
        """Return the row records that a rank dispatches.

        Args:
            rank: source rank.
            num_tokens: rows.
            layout: `Shape.dispatch_row`.
            salt: another salt, other rows.

        Returns:
            uint8 `(num_tokens, layout.stride_bytes)`, finite, padding bytes zero.
        """
        pool = _pool(stream_key(self.seed, Purpose.X, salt), layout)
        return _rows(pool, layout, rank=rank, num_rows=num_tokens, salt=salt)

    def y(self, rank: int, num_rows: int, layout: RowLayout, salt: int) -> Bytes:
        """Return the rows that a rank's experts give back.

        Args:
            rank: rank that owns the experts.
            num_rows: rows that it received.
            layout: `Shape.combine_row`.
            salt: another salt, other rows.

        Returns:
            uint8 `(num_rows, layout.stride_bytes)`, finite BF16.
        """
        pool = _pool(stream_key(self.seed, Purpose.Y, salt), layout)
        return _rows(pool, layout, rank=rank, num_rows=num_rows, salt=salt)

    def _sizes_of_file(self) -> dict[str, int]:
        spec = parse_routing(self.routing)
        if spec.path is None:
            return {}
        if spec.kind == "file":
            shape = load_topk(spec.path).topk_idx.shape
            sizes = {"num_topk": shape[-1]}
            return {**sizes, "num_tokens": shape[1]} if len(shape) == 3 else sizes
        rows = matrix_rows(load_matrix(spec.path), row_bytes(self.hidden, self.dispatch_dtype))
        return {
            "num_tokens": int(rows.sum(axis=1).max()),
            "num_experts": len(rows),
            "num_topk": 1,
            "num_groups": 0,
            "num_topk_groups": 0,
        }


class _Pool:
    """The rows that all rows of a check repeat, made when they are first asked for."""

    def __init__(self, key: int, layout: RowLayout) -> None:
        self._key = key
        self._layout = layout
        self._rows = np.zeros((POOL_ROWS, layout.stride_bytes), np.uint8)
        self._is_made = np.zeros(POOL_ROWS, np.bool_)

    def take(self, numbers: npt.NDArray[np.int64]) -> Bytes:
        """Return a copy of rows, uint8 `(len(numbers), layout.stride_bytes)`."""
        missing = np.unique(numbers[~self._is_made[numbers]])
        if missing.size:
            self._rows[missing] = _values(self._key, self._layout, missing)
            self._is_made[missing] = True
        return self._rows[numbers]


@lru_cache(maxsize=8)
def _pool(key: int, layout: RowLayout) -> _Pool:
    return _Pool(key, layout)


def _rows(pool: _Pool, layout: RowLayout, *, rank: int, num_rows: int, salt: int) -> Bytes:
    numbers = np.arange(num_rows, dtype=np.int64)
    # An odd step visits the whole pool before it repeats; ranks start at different places.
    start = stream_key(rank) % POOL_ROWS
    rows = pool.take((start + 167 * numbers) % POOL_ROWS)
    shifts = dict.fromkeys(_STAMP, 0)
    values = {"row": numbers, "rank": np.array([rank]), "salt": np.array([salt & 0xFFF])}
    for element, part in enumerate(_STAMP[: layout.moved]):
        digit = (values[part] >> shifts[part]) & ((1 << _DIGIT_BITS) - 1)
        shifts[part] += _DIGIT_BITS
        if layout.dtype == "fp8":
            rows[:, element] = digit
        else:
            rows[:, 2 * element : 2 * element + 2] = _bf16_bytes(digit)
    return rows


def _bf16_bytes(digit: npt.NDArray[np.int64]) -> Bytes:
    codes = digit.astype(np.float32).view(np.uint32) >> np.uint32(16)
    return codes.astype(np.uint16)[:, None].view(np.uint8)


def _values(key: int, layout: RowLayout, numbers: npt.NDArray[np.int64]) -> Bytes:
    """Return rows of a pool, uint8 `(len(numbers), layout.stride_bytes)`.

    Groups of 128 elements differ in scale by powers of two; of 32 groups one is zero and one about
    BF16's least normal number, half of it subnormal. One element in 16 is a zero of either sign. A
    value depends on its element in the model's row, so a prefix has what the whole row has there.
    """
    elements = layout.kept_elements().astype(np.uint64)
    num_groups = np.uint64(-(-layout.hidden // SCALE_GROUP))
    row = numbers.astype(np.uint64)[:, None]
    element_words = words_at(stream_key(key, 0), row * np.uint64(layout.hidden) + elements)
    groups, group_of = np.unique(elements // np.uint64(SCALE_GROUP), return_inverse=True)
    group_words = words_at(stream_key(key, 1), row * num_groups + groups)[:, group_of]
    # 24 bits: exact in float32, then rounded by the row's type.
    values = (element_words & np.uint64(0xFFFFFF)).astype(np.float32)
    values *= (element_words >> np.uint64(60)) > 0
    values *= np.where(
        (element_words >> np.uint64(59)) & np.uint64(1), np.float32(-1), np.float32(1)
    )
    kind = group_words & np.uint64(31)
    exponent = (group_words >> np.uint64(5) & np.uint64(15)).astype(np.int32) - 32
    if layout.dtype == "bf16":
        # Powers of two of both signs swallow the low bits of what is added before they cancel, so
        # that sums in another order differ.
        swallowing = elements % np.uint64(16) == 5
        is_power = swallowing & (element_words >> np.uint64(62) > 0)
        values = np.where(is_power, np.copysign(np.float32(2.0**46), values), values)
        exponent = np.where(swallowing, np.int32(-24), exponent)
    exponent = np.where(kind == 1, np.int32(-149), exponent)
    values *= kind > 0
    return quantize_rows(np.ldexp(values, exponent), layout)
