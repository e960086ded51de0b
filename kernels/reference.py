"""The oracle: what dispatch and combine of the whole world must give, bit for bit."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from comms.errors import UsageError
from kernels.floats import Float32, fma, from_bf16, to_bf16
from kernels.fp8 import dequantize_rows, quantize_rows
from kernels.routing_index import Granularity, Routing, RoutingIndex
from kernels.shape import Shape

__all__ = [
    "Dispatched",
    "Granularity",
    "Routing",
    "RoutingIndex",
    "combine",
    "combine_to",
    "dequantize_rows",
    "dispatch",
    "dispatch_to",
    "quantize_rows",
]

Bytes = npt.NDArray[np.uint8]

# The BF16 zero that leaves every sum as it is, +0 and -0 too; a sum that starts from it starts from
# the first contribution.
_NEGATIVE_ZERO = np.uint16(0x8000)
# Elements of one pass of combine, so that its temporaries stay in the cache.
_PASS_ELEMENTS = 1 << 17


class Dispatched(NamedTuple):
    """What dispatch leaves on one rank.

    Attributes:
        recv_x: uint8 `(num_recv, dispatch_row.stride_bytes)`.
        recv_topk_idx: int32 `(num_recv, num_topk)` expert ids local to the rank, -1 where another
            rank owns the expert; `(num_recv, 1)` per selection.
        recv_topk_weights: float32, the shape of `recv_topk_idx`, 0 where that is -1.
        recv_counts: int32 `(world_size, 1)` rows from each source rank; per selection
            `(world_size, experts_per_rank)`.
    """

    recv_x: Bytes
    recv_topk_idx: npt.NDArray[np.int32]
    recv_topk_weights: Float32
    recv_counts: npt.NDArray[np.int32]


def dispatch(
    x: Sequence[Bytes], routing: Routing, *, shape: Shape, granularity: Granularity
) -> list[Dispatched]:
    """Return what dispatch leaves on every rank.

    Args:
        x: by source rank, uint8 `(num_tokens_of_rank, dispatch_row.stride_bytes)`.
        routing: by source rank, the experts and weights of each token.
        shape: sizes of the exchange.
        granularity: `"rank"` or `"selection"`.
    """
    index = RoutingIndex.build(routing, shape, granularity)
    return [dispatch_to(rank, x, index) for rank in range(shape.world_size)]


def dispatch_to(rank: int, x: Sequence[Bytes], index: RoutingIndex) -> Dispatched:
    """Return what dispatch leaves on `rank`; arguments as `dispatch`."""
    shape = index.shape
    source_rank, source_token = index.recv_index(rank)
    recv_x = np.empty((len(source_rank), shape.dispatch_row.stride_bytes), np.uint8)
    _gather(x, source_rank, source_token, out=recv_x)
    topk_idx, topk_weights = index.recv_topk(rank)
    return Dispatched(recv_x, topk_idx, topk_weights, index.recv_counts(rank))


def combine(
    y: Sequence[Bytes],
    routing: Routing,
    *,
    shape: Shape,
    granularity: Granularity,
    hops: Literal[1, 2] = 1,
) -> list[Bytes]:
    """Return what combine leaves on every rank.

    Sums are in FP32 and start from the first contribution. Granularity `"rank"`: unweighted, over
    ascending ranks and rounded once to BF16 in one hop; in two hops over the ascending ranks of
    each node and rounded (the token's own node too), then over ascending nodes and rounded.
    Granularity `"selection"`: `fma(weight, row, sum)` over the ascending top-k slots, rounded once
    to BF16. A token without contributor gets +0.

    Args:
        y: by rank, uint8 `(num_recv or more, combine_row.stride_bytes)` in the order of `recv_x`.
        routing: by source rank, the experts and weights of each token.
        shape: sizes of the exchange.
        granularity: `"rank"` or `"selection"`.
        hops: 2 for kernels that reduce inside each node first.

    Returns:
        By source rank, uint8 `(num_tokens_of_rank, combine_row.stride_bytes)`, padding bytes zero.
    """
    index = RoutingIndex.build(routing, shape, granularity)
    return [combine_to(rank, y, index, hops=hops) for rank in range(shape.world_size)]


def combine_to(
    rank: int, y: Sequence[Bytes], index: RoutingIndex, *, hops: Literal[1, 2] = 1
) -> Bytes:
    """Return what combine leaves on `rank`; arguments as `combine`."""
    if hops == 2 and index.granularity == "selection":
        raise UsageError('combine of granularity "selection" takes 1 hop, got 2: use hops=1')
    layout = index.shape.combine_row
    ranks, rows = index.contributors(rank)
    num_tokens, num_topk = ranks.shape
    out = np.zeros((num_tokens, layout.stride_bytes), np.uint8)
    out_bits = out[:, : 2 * layout.moved].view(np.uint16)
    y_bits = [rows_of_rank[:, : 2 * layout.moved].view(np.uint16) for rows_of_rank in y]
    nodes = ranks // index.shape.ranks_per_node
    weights = index.source_weights(rank)
    pass_tokens = max(1, _PASS_ELEMENTS // layout.moved)
    for start in range(0, num_tokens, pass_tokens):
        part = slice(start, start + pass_tokens)
        part_ranks = ranks[part]
        terms = np.full((num_topk, len(part_ranks), layout.moved), _NEGATIVE_ZERO)
        _gather(y_bits, part_ranks.T, rows[part].T, out=terms)
        # Infinities and NaN add up as in IEEE 754, which is no cause for a warning here.
        with np.errstate(over="ignore", invalid="ignore"):
            if index.granularity == "selection":
                total = _sum_weighted(terms, weights[part].T)
            elif hops == 2:
                total = _sum_by_node(terms, nodes[part].T)
            else:
                total = _sum(terms)
        bits = to_bf16(total)
        bits[(part_ranks < 0).all(axis=1)] = 0
        out_bits[part] = bits
    return out


def _gather(
    sources: Sequence[npt.NDArray[np.generic]],
    source: npt.NDArray[np.int32],
    row: npt.NDArray[np.int32],
    *,
    out: npt.NDArray[np.generic],
) -> None:
    """Set `out[i] = sources[source[i]][row[i]]` for each multi-index i with `source[i] >= 0`."""
    flat_source, flat_row = source.ravel(), row.ravel()
    flat_out = out.reshape(-1, out.shape[-1])
    order = np.argsort(flat_source, kind="stable")
    ends = np.searchsorted(flat_source, np.arange(-1, len(sources)), side="right", sorter=order)
    for rank in range(len(sources)):
        places = order[ends[rank] : ends[rank + 1]]
        if len(places):
            flat_out[places] = np.take(sources[rank], flat_row[places], axis=0)


def _negative_zeros(terms: npt.NDArray[np.uint16]) -> Float32:
    return np.full(terms.shape[1:], -0.0, np.float32)


def _sum(terms: npt.NDArray[np.uint16]) -> Float32:
    total = _negative_zeros(terms)
    for term in terms:
        total += from_bf16(term)
    return total


def _sum_weighted(terms: npt.NDArray[np.uint16], weights: Float32) -> Float32:
    total = _negative_zeros(terms)
    for term, weight in zip(terms, weights, strict=True):
        total = fma(weight[:, None], from_bf16(term), total)
    return total


def _sum_by_node(terms: npt.NDArray[np.uint16], nodes: npt.NDArray[np.int32]) -> Float32:
    total, node_total = _negative_zeros(terms), _negative_zeros(terms)
    for k, term in enumerate(terms):
        if k:
            # Contributors ascend by rank, so a node's are neighbours.
            node_ends = nodes[k] != nodes[k - 1]
            total[node_ends] += _round_to_bf16(node_total[node_ends])
            node_total[node_ends] = -0.0
        node_total += from_bf16(term)
    return total + _round_to_bf16(node_total)


def _round_to_bf16(values: Float32) -> Float32:
    return from_bf16(to_bf16(values))
