"""Sizes of one exchange, equal on every rank."""

from dataclasses import dataclass
from functools import cached_property

from comms.errors import UsageError
from kernels.rows import Dtype, RowLayout


@dataclass(frozen=True)
class Shape:
    """What a kernel may know before it runs.

    Attributes:
        num_nodes: nodes of the world.
        ranks_per_node: ranks on each node; rank r is on node `r // ranks_per_node`.
        num_tokens: most tokens that any rank holds.
        hidden: elements of a row.
        num_experts: experts of the layer; a rank owns `ceil(num_experts / world_size)` of them or
            fewer.
        num_topk: experts selected for a token.
        dispatch_dtype: `"fp8"` or `"bf16"`.
        combine_dtype: `"bf16"`.
        prefix: elements of each row that really move, None for all.
        num_sms: SMs reserved for communication on each rank.
        knobs: names and values of the protocol's knobs that somebody has turned.
    """

    num_nodes: int
    ranks_per_node: int
    num_tokens: int
    hidden: int
    num_experts: int
    num_topk: int
    num_sms: int
    dispatch_dtype: Dtype = "fp8"
    combine_dtype: Dtype = "bf16"
    prefix: int | None = None
    knobs: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_nodes", "ranks_per_node", "hidden", "num_experts", "num_topk", "num_sms"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_tokens < 0:
            raise UsageError(f"num_tokens must not be negative, got {self.num_tokens}")
        if self.num_topk > self.num_experts:
            raise UsageError(
                f"num_topk must be at most num_experts, got {self.num_topk} of {self.num_experts}"
            )

    @property
    def world_size(self) -> int:
        """Ranks of the world."""
        return self.num_nodes * self.ranks_per_node

    @property
    def experts_per_rank(self) -> int:
        """Experts of a rank, the last owners may have fewer."""
        return -(-self.num_experts // self.world_size)

    @cached_property
    def dispatch_row(self) -> RowLayout:
        """Layout of the rows of `x` and `recv_x`."""
        return self._row(self.dispatch_dtype)

    @cached_property
    def combine_row(self) -> RowLayout:
        """Layout of the rows of `y` and `out`."""
        return self._row(self.combine_dtype)

    def _row(self, dtype: Dtype) -> RowLayout:
        moved = self.hidden if self.prefix is None else min(self.hidden, self.prefix)
        return RowLayout(self.hidden, dtype, moved)
