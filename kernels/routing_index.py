"""Where each row of an exchange comes from and goes to, computed once for the whole world."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from comms.errors import UsageError
from kernels.shape import Shape

#: `"rank"`: a row per (token, destination rank); `"selection"`: a row per (token, selected expert).
Granularity = Literal["rank", "selection"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class Routing(Protocol):
    """The experts of every token, lists by source rank.

    Attributes:
        topk_idx: int32 `(num_tokens_of_rank, num_topk)`, -1 is no expert.
        topk_weights: float32, same shape; not looked at where `topk_idx` is -1.
    """

    @property
    def topk_idx(self) -> Sequence[Int32]: ...

    @property
    def topk_weights(self) -> Sequence[Float32]: ...


@dataclass(frozen=True, slots=True, eq=False)
class RoutingIndex:
    """Rows of every rank, both as their destination and as their source sees them.

    A slot is a (source rank, source token, top-k position), numbered in that order, and sends one
    row or none. Per rank a token's last slots send, to its destinations in ascending order; per
    selection slot k sends the row of the token's k-th expert.

    Attributes:
        shape: sizes of the exchange.
        granularity: `"rank"` or `"selection"`.
        topk_idx: int32 `(num_tokens_of_world, num_topk)`.
        topk_weights: float32, same shape, 0 where `topk_idx` is -1.
        token_starts: int64 `(world_size + 1,)`, first token of each source rank in those.
        row_starts: int64 `(world_size + 1,)`, first row of each destination rank in `slot_of_row`.
        slot_of_row: int64 `(num_rows_of_world,)`, by destination rank and row.
        slot_rank: int32 `(num_tokens_of_world, num_topk)`, destination of each slot's row, or -1.
        slot_row: int32, same shape, number of that row at its destination, or -1.
    """

    shape: Shape
    granularity: Granularity
    topk_idx: Int32
    topk_weights: Float32
    token_starts: Int64
    row_starts: Int64
    slot_of_row: Int64
    slot_rank: Int32
    slot_row: Int32

    @classmethod
    def build(cls, routing: Routing, shape: Shape, granularity: Granularity) -> "RoutingIndex":
        """Return the index of a routing.

        Raises:
            UsageError: lists that do not fit the shape, or an expert that does not exist.
        """
        topk_idx = _world_topk_idx(routing, shape)
        topk_weights = np.concatenate(list(routing.topk_weights)).astype(np.float32, copy=False)
        topk_weights = np.where(topk_idx >= 0, topk_weights, np.float32(0))
        owner = np.where(topk_idx >= 0, topk_idx // shape.experts_per_rank, -1).astype(np.int32)
        if granularity == "rank":
            owner = _distinct_ascending(owner)
        group = owner if granularity == "rank" else topk_idx
        sending = np.flatnonzero(owner >= 0)
        slot_of_row = sending[np.argsort(_narrow(group).ravel()[sending], kind="stable")]
        rows_per_rank = np.bincount(owner.ravel()[sending], minlength=shape.world_size)
        row_starts = _starts(rows_per_rank)
        slot_row = np.full(owner.size, -1, np.int32)
        slot_row[slot_of_row] = np.arange(len(slot_of_row)) - np.repeat(
            row_starts[:-1], rows_per_rank
        )
        token_starts = _starts(np.array([len(idx) for idx in routing.topk_idx]))
        return cls(
            shape=shape,
            granularity=granularity,
            topk_idx=topk_idx,
            topk_weights=topk_weights,
            token_starts=token_starts,
            row_starts=row_starts,
            slot_of_row=slot_of_row,
            slot_rank=owner,
            slot_row=slot_row.reshape(owner.shape),
        )

    def recv_index(self, rank: int) -> tuple[Int32, Int32]:
        """Return source rank and source token of each row of `rank`, both int32 `(num_recv,)`."""
        token, _ = self._recv_slots(rank)
        source_rank = np.searchsorted(self.token_starts, token, side="right") - 1
        source_token = token - self.token_starts[source_rank]
        return source_rank.astype(np.int32), source_token.astype(np.int32)

    def recv_topk(self, rank: int) -> tuple[Int32, Float32]:
        """Return the local expert ids and weights of the rows of `rank`, as in `Dispatched`."""
        token, k = self._recv_slots(rank)
        if self.granularity == "selection":
            idx, weights = self.topk_idx[token, k][:, None], self.topk_weights[token, k][:, None]
        else:
            idx, weights = self.topk_idx[token], self.topk_weights[token]
        first = rank * self.shape.experts_per_rank
        owned = (idx >= first) & (idx < first + self.shape.experts_per_rank)
        return (
            np.where(owned, idx - first, -1).astype(np.int32),
            np.where(owned, weights, np.float32(0)),
        )

    def recv_counts(self, rank: int) -> Int32:
        """Return the rows of `rank` by source rank (and local expert), as in `Dispatched`."""
        source_rank, _ = self.recv_index(rank)
        if self.granularity == "rank":
            num_columns, column = 1, np.zeros_like(source_rank)
        else:
            num_columns, column = self.shape.experts_per_rank, self.recv_topk(rank)[0][:, 0]
        counts = np.bincount(
            source_rank.astype(np.int64) * num_columns + column,
            minlength=self.shape.world_size * num_columns,
        )
        return counts.reshape(self.shape.world_size, num_columns).astype(np.int32)

    def contributors(self, rank: int) -> tuple[Int32, Int32]:
        """Return who contributes to each token of source `rank`, in the order combine adds them.

        Returns:
            Ranks and rows there, int32 `(num_tokens_of_rank, num_topk)`, -1 where a slot is empty.
        """
        tokens = self._tokens(rank)
        return self.slot_rank[tokens], self.slot_row[tokens]

    def source_weights(self, rank: int) -> Float32:
        """Return the top-k weights of source `rank`, float32 `(num_tokens_of_rank, num_topk)`."""
        return self.topk_weights[self._tokens(rank)]

    def num_recv(self, rank: int) -> int:
        """Return the number of rows that `rank` receives."""
        return int(self.row_starts[rank + 1] - self.row_starts[rank])

    def _tokens(self, rank: int) -> slice:
        return slice(int(self.token_starts[rank]), int(self.token_starts[rank + 1]))

    def _recv_slots(self, rank: int) -> tuple[Int64, Int64]:
        slots = self.slot_of_row[self.row_starts[rank] : self.row_starts[rank + 1]]
        token, k = np.divmod(slots, self.shape.num_topk)
        return token, k


def _world_topk_idx(routing: Routing, shape: Shape) -> Int32:
    num_ranks = len(routing.topk_idx)
    if num_ranks != shape.world_size or len(routing.topk_weights) != num_ranks:
        raise UsageError(
            f"routing must list {shape.world_size} ranks, got {num_ranks} of topk_idx and "
            f"{len(routing.topk_weights)} of topk_weights"
        )
    for rank, (idx, weights) in enumerate(zip(routing.topk_idx, routing.topk_weights, strict=True)):
        if idx.shape != (len(idx), shape.num_topk) or weights.shape != idx.shape:
            raise UsageError(
                f"topk_idx and topk_weights of rank {rank} must be (num_tokens, "
                f"{shape.num_topk}), got {idx.shape} and {weights.shape}"
            )
    topk_idx = np.concatenate(list(routing.topk_idx)).astype(np.int32, copy=False)
    bad = topk_idx[(topk_idx < -1) | (topk_idx >= shape.num_experts)]
    if len(bad):
        raise UsageError(
            f"topk_idx must lie between -1 and {shape.num_experts - 1}, got {bad[0]}: "
            "check num_experts"
        )
    return topk_idx


def _distinct_ascending(owner: Int32) -> Int32:
    """Return each token's distinct owners in ascending order, after -1 in the slots left over."""
    owner = np.sort(owner, axis=1)
    owner[:, 1:][owner[:, 1:] == owner[:, :-1]] = -1
    return np.sort(owner, axis=1)


def _narrow(values: Int32) -> npt.NDArray[np.integer]:
    # NumPy's stable sort is a radix sort, and several times faster, up to 16 bits.
    return values.astype(np.int16) if values.max(initial=0) < 2**15 else values


def _starts(counts: npt.NDArray[np.integer]) -> Int64:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
