"""The first hop of `ring_two_hop` combine: rows go back to the rank of the rail they came by.

Flags and rings as `kernels.ring_two_hop.combine` says.
"""

from typing import NamedTuple

from kernels import isa
from kernels.ring_two_hop.params import EPOCH, NEVER, CombineParams, Place, channel_of, scratch_of


class Rows(NamedTuple):
    """Local addresses of int64 tables of a sender by the node that rows came from.

    Attributes:
        firsts: the channel's first row in `y`.
        totals: rows of the channel.
        sent: of these.
        credits: of these, those whose slots are known to be free again.
        wanted: what to wait for.
    """

    firsts: int
    totals: int
    sent: int
    credits: int
    wanted: int


def push_rows(p: CombineParams, place: Place, target: int) -> None:
    """Copy the rows that came by way of local rank `target` into its rings."""
    rows = rows_of(p)
    num_left = 0
    for node in range(p.num_nodes):
        near = channel_of() * p.ranks_per_node + target
        span = p.nvl_spans_addr + 16 * (near * p.num_nodes + node)
        begin = isa.load_i64(span) % EPOCH
        total = isa.load_i64(span + 8) % EPOCH - begin
        first = isa.load_i32(p.bases_addr + 4 * (node * p.ranks_per_node + target))
        isa.store_i64(rows.firsts + 8 * node, first + begin)
        isa.store_i64(rows.totals + 8 * node, total)
        isa.store_i64(rows.sent + 8 * node, 0)
        isa.store_i64(rows.credits + 8 * node, 0)
        num_left += total
    node = (channel_of() + place.node) % p.num_nodes
    while num_left > 0:
        node = next_node(p, place, target, (node + 1) % p.num_nodes)
        num_left -= push_chunk(p, place, target, node)


def rows_of(p: CombineParams) -> Rows:
    """Return this warp's tables."""
    step, at = 8 * p.num_nodes, scratch_of(p)
    return Rows(at, at + step, at + 2 * step, at + 3 * step, at + 4 * step)


def next_node(p: CombineParams, place: Place, target: int, first: int) -> int:
    """Return the next node, from `first` on, whose ring has room; wait until one has."""
    rows = rows_of(p)
    ring = p.combine_nvl_recv // p.num_nodes
    near = channel_of() * p.ranks_per_node + target
    credits = p.back_nvl_credit + 8 * near * p.num_nodes
    for step in range(p.num_nodes):
        node = (first + step) % p.num_nodes
        sent, total = isa.load_i64(rows.sent + 8 * node), isa.load_i64(rows.totals + 8 * node)
        needed = sent + min(p.combine_nvl_send, total - sent) - ring
        isa.store_i64(rows.wanted + 8 * node, place.base + needed if sent < total else NEVER)
        if sent < total:
            if isa.load_i64(rows.credits + 8 * node) >= needed:
                return node
            credit = isa.load_acquire(credits + 8 * node) - place.base
            isa.store_i64(rows.credits + 8 * node, credit)
            if credit >= needed:
                return node
    return isa.wait_any(credits, 8, rows.wanted, p.num_nodes, first)


def push_chunk(p: CombineParams, place: Place, target: int, node: int) -> int:
    """Copy a node's next rows into its ring and release them.

    Returns:
        Number of rows.
    """
    rows = rows_of(p)
    ring = p.combine_nvl_recv // p.num_nodes
    peer = place.node * p.ranks_per_node + target
    theirs = (channel_of() * p.ranks_per_node + place.local) * p.num_nodes + node
    sent, total = isa.load_i64(rows.sent + 8 * node), isa.load_i64(rows.totals + 8 * node)
    first = isa.load_i64(rows.firsts + 8 * node)
    end = min(sent + p.combine_nvl_send, total)
    for row in range(sent, end):
        slot = theirs * ring + row % ring
        isa.copy_row_bulk(
            peer,
            p.back_nvl_rows + slot * p.y_row_bytes,
            p.y_addr + (first + row) * p.y_row_bytes,
            p.y_row_bytes,
        )
    isa.store_release(peer, p.back_nvl_tail + 8 * theirs, place.base + end)
    isa.store_i64(rows_of(p).sent + 8 * node, end)
    return end - sent
