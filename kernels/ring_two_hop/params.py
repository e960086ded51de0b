"""Parameters of the kernels of `ring_two_hop`, and what they compute from them alone.

A region's name is its offset, with `_addr` its address on this rank.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin

#: Warps of a block: DeepEP V1 launches 16 for dispatch, and 24 and a coordinator for combine.
DISPATCH_WARPS, COMBINE_WARPS = 16, 25
#: Warps of a dispatching block that fill send rings.
SENDER_WARPS = 7
#: Warps of a combining block that are no coordinators.
WORKER_WARPS = COMBINE_WARPS - 1

#: What every epoch adds to a counter of an epoch's rows: counts of rows stay below it.
EPOCH = 1 << 32
#: More than any counter reaches.
NEVER = 1 << 62


class DispatchParams(NamedTuple):
    """Parameters of `dispatch`."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_tokens: int
    most_tokens: int
    num_topk: int
    experts_per_rank: int
    num_copies: int
    x_row_bytes: int
    counts_bytes: int
    channel_meta_bytes: int
    info_bytes: int
    scratch_bytes: int
    dispatch_nvl_send: int
    dispatch_nvl_recv: int
    dispatch_rdma_send: int
    dispatch_rdma_recv: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx_addr: int
    recv_topk_weights_addr: int
    dispatch_epoch: int
    block_counts_addr: int
    bases_addr: int
    send_num_addr: int
    send_nodes_addr: int
    send_slots_addr: int
    scratch_addr: int
    send_meta_addr: int
    channel_meta: int
    channel_meta_addr: int
    told: int
    filled: int
    rdma_tail: int
    rdma_credit: int
    forwarded: int
    nvl_spans: int
    nvl_tail: int
    nvl_credit: int
    nvl_ends_addr: int
    send_rows: int
    send_rows_addr: int
    send_info_addr: int
    rdma_rows: int
    rdma_rows_addr: int
    rdma_info: int
    rdma_info_addr: int
    nvl_rows: int
    nvl_rows_addr: int
    nvl_idx: int
    nvl_idx_addr: int
    nvl_weights: int
    nvl_weights_addr: int
    nvl_nodes: int
    nvl_nodes_addr: int


class CombineParams(NamedTuple):
    """Parameters of `combine`."""

    rank: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_tokens: int
    most_tokens: int
    num_copies: int
    y_row_bytes: int
    channel_meta_bytes: int
    scratch_bytes: int
    combine_nvl_send: int
    combine_nvl_recv: int
    combine_rdma_send: int
    combine_rdma_recv: int
    y_addr: int
    out_addr: int
    combine_epoch: int
    bases_addr: int
    send_num_addr: int
    send_nodes_addr: int
    send_slots_addr: int
    scratch_addr: int
    channel_meta_addr: int
    nvl_spans_addr: int
    nvl_ends_addr: int
    back_nvl_tail: int
    back_nvl_credit: int
    back_tail: int
    back_credit: int
    summed: int
    reduced: int
    back_nvl_rows: int
    back_send_rows_addr: int
    back_rows: int
    back_rows_addr: int


class Place(NamedTuple):
    """Where a warp works.

    Attributes:
        node: of this rank.
        local: this rank's place on its node.
        base: what a counter of rows was when this epoch began.
    """

    node: int
    local: int
    base: int


class Span(NamedTuple):
    """Consecutive rows: the first and the first after them."""

    begin: int
    end: int


def channel_of() -> int:
    """Return the channel of this warp: a pair of blocks."""
    return isa.sm_id() // 2


def scratch_of(p: DispatchParams | CombineParams) -> int:
    """Return the local address of this warp's tables, int64 by node and more."""
    return p.scratch_addr + (isa.sm_id() * p.num_warps + isa.warp_id()) * p.scratch_bytes


def channel_tokens(num_tokens: int, channel: int, num_sms: int) -> Span:
    """Return the tokens of a channel, an even, contiguous share."""
    num_channels = num_sms // 2
    return Span(
        share_begin(num_tokens, channel, num_channels),
        share_begin(num_tokens, channel + 1, num_channels),
    )


def last_signal(first: int, count: int, total: int) -> int:
    """Return what to add for rows `first` to `first + count`: the last rows make up an EPOCH."""
    return EPOCH - first if first + count == total else count
