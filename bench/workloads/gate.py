"""The sizes that a routing is generated for."""

from dataclasses import dataclass

from bench.workloads.random_bits import MAX_ID
from comms.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gate:
    """What a routing is generated for.

    Attributes:
        world_size: ranks.
        num_tokens: tokens of each rank; the most of any rank for `file` and `matrix`.
        num_experts: experts of the layer.
        num_topk: experts of a token.
        num_groups: groups of experts, 0 for none.
        num_topk_groups: groups that a token may use.
        row_bytes: bytes of the model's whole row, by which `matrix` counts rows.
        seed: the same seed gives the same routing.
        masked_ratio: share of each rank's selections that become -1, in [0, 1].
    """

    world_size: int
    num_tokens: int
    num_experts: int
    num_topk: int
    num_groups: int = 0
    num_topk_groups: int = 0
    row_bytes: int = 1
    seed: int = 0
    masked_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.masked_ratio <= 1:
            raise UsageError(f"masked_ratio must be between 0 and 1, got {self.masked_ratio}")
        if not 1 <= self.num_experts <= MAX_ID:
            raise UsageError(f"num_experts must be between 1 and {MAX_ID}, got {self.num_experts}")
        if not 1 <= self.num_topk <= self.num_experts:
            raise UsageError(
                f"num_topk must be between 1 and num_experts {self.num_experts}, "
                f"got {self.num_topk}"
            )
        if self.world_size < 1 or self.num_tokens < 0:
            raise UsageError(
                f"a world needs ranks and no negative tokens, got {self.world_size} ranks of "
                f"{self.num_tokens} tokens"
            )

    @property
    def experts_per_rank(self) -> int:
        """Experts of a rank; the last owners may have fewer."""
        return -(-self.num_experts // self.world_size)

    @property
    def num_owners(self) -> int:
        """Ranks that own an expert: the first ones."""
        return -(-self.num_experts // self.experts_per_rank)
