"""The end of `ring_two_hop` dispatch: from a forwarder's ring to final places.

Flags, rings and records as `kernels.ring_two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import TopkRow
from kernels.ring_two_hop.params import EPOCH, DispatchParams, Place, channel_of, scratch_of

#: Experts of a rank that owns all: ids stay as they are.
ALL_EXPERTS = 1 << 30


def receive_rows(p: DispatchParams, place: Place, source: int) -> None:
    """Scatter the rows that come by the ring of local rank `source`."""
    near = channel_of() * p.ranks_per_node + source
    spans = 16 * near * p.num_nodes
    places = scratch_of(p)
    num_left = 0
    for node in range(p.num_nodes):
        at = spans + 16 * node
        begin = isa.wait_ge(p.nvl_spans + at, place.base + EPOCH) % EPOCH
        end = isa.wait_ge(p.nvl_spans + at + 8, place.base + EPOCH) % EPOCH
        base = isa.load_i32(p.bases_addr + 4 * (node * p.ranks_per_node + source))
        isa.store_i64(places + 8 * node, base + begin)
        num_left += end - begin
    forwarder = place.node * p.ranks_per_node + source
    theirs = channel_of() * p.ranks_per_node + place.local
    head = 0
    while num_left > 0:
        tail = isa.wait_ge(p.nvl_tail + 8 * near, place.base + head + 1) - place.base
        for row in range(head, tail):
            receive_row(p, near * p.dispatch_nvl_recv + row % p.dispatch_nvl_recv, places)
        isa.store_release(forwarder, p.nvl_credit + 8 * theirs, place.base + tail)
        num_left -= tail - head
        head = tail


def receive_row(p: DispatchParams, slot: int, places: int) -> None:
    """Copy the record of a slot to the next place of its source."""
    node = isa.load_i64(p.nvl_nodes_addr + 8 * slot)
    place = isa.load_i64(places + 8 * node)
    isa.store_i64(places + 8 * node, place + 1)
    ids, to = 4 * p.num_topk * slot, 4 * p.num_topk * place
    topk = TopkRow(p.nvl_idx_addr + ids, p.nvl_weights_addr + ids, p.num_topk, ALL_EXPERTS, 1)
    isa.localize_topk(0, p.recv_topk_idx_addr + to, p.recv_topk_weights_addr + to, topk)
    isa.copy_row_bulk(
        p.rank,
        p.recv_x + place * p.x_row_bytes,
        p.nvl_rows_addr + slot * p.x_row_bytes,
        p.x_row_bytes,
    )
