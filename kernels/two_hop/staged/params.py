"""Parameters of the kernels of `two_hop/staged`: a region's name is its offset, with `_addr` an
address.
"""

from typing import NamedTuple

from kernels import isa


class CountParams(NamedTuple):
    """Parameters of `count` and `totals`."""

    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    counts_bytes: int
    topk_idx_addr: int
    worker_counts_addr: int
    block_counts_addr: int
    own_counts_addr: int


class PackParams(NamedTuple):
    """Parameters of `pack`."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    cached: int
    counts_bytes: int
    lists_bytes: int
    record_bytes: int
    kept_bytes: int
    x_row_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    worker_counts_addr: int
    block_counts_addr: int
    own_counts_addr: int
    all_counts_addr: int
    cursors_addr: int
    lists_addr: int
    send_num_addr: int
    send_nodes_addr: int
    send_rows_addr: int
    kept_addr: int
    stage_x: int
    stage_records_addr: int


class ForwardParams(NamedTuple):
    """Parameters of `forward`."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    num_topk: int
    experts_per_rank: int
    cached: int
    most_tokens: int
    counts_bytes: int
    record_bytes: int
    kept_bytes: int
    x_row_bytes: int
    x_addr: int
    topk_idx_addr: int
    topk_weights_addr: int
    recv_x: int
    recv_topk_idx: int
    recv_topk_weights: int
    recv_counts_addr: int
    own_counts_addr: int
    all_counts_addr: int
    kept_addr: int
    rail_x_addr: int
    rail_records_addr: int
    dispatch_epoch: int
    grant: int
    done: int


class SumParams(NamedTuple):
    """Parameters of `sum_nodes`."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_nodes: int
    num_sms: int
    num_warps: int
    most_tokens: int
    counts_bytes: int
    kept_bytes: int
    y_row_bytes: int
    y: int
    own_counts_addr: int
    all_counts_addr: int
    kept_addr: int
    back_addr: int
    rail_back_addr: int
    combine_epoch: int
    ready: int
    read: int


class Items(NamedTuple):
    """What a rank has for its node: rows of its own tokens, then rows that came over the rail.

    Attributes:
        num_near: own tokens that the own node wants.
        num_rail: rows from other nodes, in their order.
        near_begin: row in `back`, and in the order of what is sent, of the first own token.
    """

    num_near: int
    num_rail: int
    near_begin: int


def items_of(p: ForwardParams | SumParams) -> Items:
    """Return what the counts of all ranks say that this rank has for its node."""
    node, local = p.rank // p.ranks_per_node, p.rank % p.ranks_per_node
    by_node = 4 * p.world_size
    near_begin, num_rail = 0, 0
    for other in range(p.num_nodes):
        if other < node:
            near_begin += isa.load_i32(p.own_counts_addr + by_node + 4 * other)
        if other != node:
            source = other * p.ranks_per_node + local
            counts = p.all_counts_addr + source * p.counts_bytes + by_node
            num_rail += isa.load_i32(counts + 4 * node)
    num_near = isa.load_i32(p.own_counts_addr + by_node + 4 * node)
    return Items(num_near, num_rail, near_begin)


def kept_at(p: ForwardParams | SumParams, items: Items, item: int) -> int:
    """Return the address of where an item's rows on this node are."""
    place = item
    if item >= items.num_near:
        place = p.most_tokens + item - items.num_near
    return p.kept_addr + place * p.kept_bytes
