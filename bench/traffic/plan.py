"""How many rows go where, counted from the routing."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comms.errors import UsageError
from kernels.routing_index import Routing
from kernels.shape import Shape

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Counts of one exchange; what a rank or node sends to itself is counted, too.

    Attributes:
        num_nodes: nodes of the world.
        ranks_per_node: ranks on each node; rank r is on node `r // ranks_per_node`.
        num_tokens: int64 `(R,)`, tokens of each source rank.
        selections: int64 `(R, R)`, (token, selected expert) pairs from source to owner.
        copies: int64 `(R, R)`, (token, destination rank) pairs.
        node_copies: int64 `(R, num_nodes)`, (token, destination node) pairs.
    """

    num_nodes: int
    ranks_per_node: int
    num_tokens: Int64
    selections: Int64
    copies: Int64
    node_copies: Int64

    @property
    def world_size(self) -> int:
        """Ranks of the world."""
        return self.num_nodes * self.ranks_per_node

    @classmethod
    def of(cls, routing: Routing, shape: Shape) -> "Plan":
        """Count a routing.

        Raises:
            UsageError: the routing has another number of ranks, or an expert that does not exist.
        """
        size = shape.world_size
        if len(routing.topk_idx) != size:
            raise UsageError(
                f"the routing has {len(routing.topk_idx)} ranks, the shape has {size}; "
                "make both of one world"
            )
        selections = np.zeros((size, size), np.int64)
        copies = np.zeros((size, size), np.int64)
        node_copies = np.zeros((size, shape.num_nodes), np.int64)
        for rank, topk_idx in enumerate(routing.topk_idx):
            if ((topk_idx < -1) | (topk_idx >= shape.num_experts)).any():
                raise UsageError(
                    f"topk_idx of rank {rank} must be -1 or below num_experts {shape.num_experts}"
                )
            # Column `size` takes the selections that are no expert.
            owner = np.where(topk_idx >= 0, topk_idx // shape.experts_per_rank, size)
            selections[rank] = np.bincount(owner.ravel(), minlength=size + 1)[:size]
            hit = np.zeros((len(topk_idx), size + 1), np.bool_)
            hit[np.arange(len(topk_idx))[:, None], owner] = True
            copies[rank] = hit[:, :size].sum(axis=0)
            by_node = hit[:, :size].reshape(-1, shape.num_nodes, shape.ranks_per_node)
            node_copies[rank] = by_node.any(axis=2).sum(axis=0)
        return cls(
            num_nodes=shape.num_nodes,
            ranks_per_node=shape.ranks_per_node,
            num_tokens=np.array([len(idx) for idx in routing.topk_idx], np.int64),
            selections=selections,
            copies=copies,
            node_copies=node_copies,
        )
