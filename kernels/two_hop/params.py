"""Parameters of both kernels of `two_hop`, and where the words and rows of a stream are."""

from typing import NamedTuple, Protocol

from kernels import isa


class DispatchParams(NamedTuple):
    """Parameters of `dispatch`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    channel_warps: int
    forward_warps: int
    num_forwarders: int
    num_remote_streams: int
    num_streams_per_warp: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    cached: int
    chunk_rows: int
    ring_rows: int
    channel_rows: int
    x_row_bytes: int
    record_bytes: int
    kept_bytes: int
    counts_bytes: int
    channels_bytes: int
    x: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx: int
    recv_topk_weights: int
    recv_counts_addr: int
    dispatch_epoch: int
    dispatch_epoch_addr: int
    fresh_epoch: int
    fresh_epoch_addr: int
    counted: int
    grant: int
    rail_hello: int
    hello: int
    done: int
    worker_counts_addr: int
    own_counts_addr: int
    node_counts_addr: int
    counts: int
    counts_addr: int
    incoming: int
    incoming_addr: int
    cursors_addr: int
    lists_addr: int
    wanted_addr: int
    places_addr: int
    expected_addr: int
    kept_addr: int
    records_addr: int
    pending_addr: int
    sent_addr: int
    received_addr: int
    ring: int
    ring_addr: int
    ring_records: int
    ring_records_addr: int
    tail: int
    credit: int


class CombineParams(NamedTuple):
    """Parameters of `combine`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    channel_warps: int
    reduce_warps: int
    num_reducers: int
    num_streams: int
    num_streams_per_warp: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    combine_chunk_rows: int
    combine_ring_rows: int
    channel_rows: int
    kept_bytes: int
    y_row_bytes: int
    topk_idx_addr: int
    y: int
    out_addr: int
    combine_epoch: int
    combine_epoch_addr: int
    ready: int
    read: int
    lists_addr: int
    wanted_addr: int
    places_addr: int
    expected_addr: int
    kept_addr: int
    reduced_addr: int
    summed_addr: int
    stage_addr: int
    back: int
    back_addr: int
    back_tail: int
    back_credit: int


class Sizes(Protocol):
    """Parameters of every kernel here that writes records."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def ranks_per_node(self) -> int: ...
    @property
    def num_topk(self) -> int: ...
    @property
    def experts_per_rank(self) -> int: ...


class Targets(Sizes, Protocol):
    """Parameters of every kernel here that writes rows into their final places."""

    @property
    def x_row_bytes(self) -> int: ...
    @property
    def recv_x(self) -> int: ...
    @property
    def recv_topk_idx(self) -> int: ...
    @property
    def recv_topk_weights(self) -> int: ...


class Lists(NamedTuple):
    """A warp's int32 lists: distinct ranks or nodes, their rows or places, and a count by node."""

    ranks: int
    rows: int
    nodes: int
    places: int
    cursor: int


def lists_of(lists_addr: int, worker: int, num_topk: int, num_nodes: int) -> Lists:
    """Return a warp's lists."""
    size = 4 * num_topk
    at = lists_addr + worker * (4 * size + 4 * num_nodes)
    return Lists(at, at + size, at + 2 * size, at + 3 * size, at + 4 * size)


def own_lists(p: DispatchParams | CombineParams) -> Lists:
    """Return the lists of this warp."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    return lists_of(p.lists_addr, worker, p.num_topk, p.num_nodes)


def relative(node: int, other: int, num_nodes: int) -> int:
    """Return how a node numbers another: the next is 0, itself the last."""
    return (other - node - 1) % num_nodes


def node_at(node: int, index: int, num_nodes: int) -> int:
    """Return the node that `relative` gives the number `index`."""
    return (node + 1 + index) % num_nodes


def mate_on(rank: int, node: int, ranks_per_node: int) -> int:
    """Return the rank of a node that is on the same rail as `rank`."""
    return node * ranks_per_node + rank % ranks_per_node
