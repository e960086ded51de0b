"""The second hop of `ring_two_hop` dispatch: from the rail's rings into those of the node's ranks.

Flags, rings and records as `kernels.ring_two_hop.dispatch` says.
"""

from typing import NamedTuple

from kernels import isa
from kernels.isa import TopkRow
from kernels.ring_two_hop.params import (
    EPOCH,
    NEVER,
    DispatchParams,
    Place,
    channel_of,
    last_signal,
    scratch_of,
)


class Sources(NamedTuple):
    """Local addresses of int64 tables of a forwarder by source node.

    Attributes:
        heads: records gone through.
        tails: records seen in the ring.
        totals: records of the channel.
        begins: the first of them, among the source's records for this node.
        ends: rows sent to the forwarder's rank.
        wanted: what to wait for.
    """

    heads: int
    tails: int
    totals: int
    begins: int
    ends: int
    wanted: int


def sources_of(p: DispatchParams) -> Sources:
    """Return a forwarder's tables."""
    step = 8 * p.num_nodes
    at = scratch_of(p)
    return Sources(at, at + step, at + 2 * step, at + 3 * step, at + 4 * step, at + 5 * step)


def hear_channel(p: DispatchParams, place: Place, target: int, sources: Sources) -> int:
    """Learn each source node's records, pass on its rows for local rank `target`.

    Returns:
        Number of records.
    """
    peer = place.node * p.ranks_per_node + target
    spans = p.nvl_spans + 16 * (channel_of() * p.ranks_per_node + place.local) * p.num_nodes
    num_records = 0
    for node in range(p.num_nodes):
        stream = channel_of() * p.num_nodes + node
        isa.wait_ge(p.told + 8 * stream, place.base + EPOCH)
        meta = p.channel_meta_addr + stream * p.channel_meta_bytes
        for side in range(2):
            value = place.base + EPOCH + isa.load_i32(meta + 8 * target + 4 * side)
            isa.store(peer, spans + 16 * node + 8 * side, value)
        begin = isa.load_i32(meta + 8 * p.ranks_per_node)
        total = isa.load_i32(meta + 8 * p.ranks_per_node + 4) - begin
        isa.store_i64(sources.heads + 8 * node, 0)
        isa.store_i64(sources.tails + 8 * node, 0)
        isa.store_i64(sources.totals + 8 * node, total)
        isa.store_i64(sources.begins + 8 * node, begin)
        isa.store_i64(sources.ends + 8 * node, 0)
        num_records += total
    return num_records


def forward_rows(p: DispatchParams, place: Place, target: int) -> None:
    """Copy the records that local rank `target` wants into its ring."""
    sources = sources_of(p)
    num_left = hear_channel(p, place, target, sources)
    near = channel_of() * p.ranks_per_node + target
    peer = place.node * p.ranks_per_node + target
    theirs = channel_of() * p.ranks_per_node + place.local
    num_sent, num_taken = 0, 0
    node = (channel_of() + place.node) % p.num_nodes
    while num_left > 0:
        if num_sent + p.dispatch_nvl_send - num_taken > p.dispatch_nvl_recv:
            needed = num_sent + p.dispatch_nvl_send - p.dispatch_nvl_recv
            num_taken = isa.wait_ge(p.nvl_credit + 8 * near, place.base + needed) - place.base
        node = next_source(p, place, sources, (node + 1) % p.num_nodes)
        head = isa.load_i64(sources.heads + 8 * node)
        tail = isa.load_i64(sources.tails + 8 * node)
        record, num_rows = head, 0
        while record < tail and num_rows < p.dispatch_nvl_send:
            num_rows += forward_row(p, place, target, node, record, num_sent + num_rows)
            record += 1
        # One release for the ring's tail and for `forwarded`, before which the records were read.
        isa.fence_release()
        if num_rows > 0:
            num_sent += num_rows
            isa.store(peer, p.nvl_tail + 8 * theirs, place.base + num_sent)
        stream = channel_of() * p.num_nodes + node
        isa.store(
            p.rank, p.forwarded + 8 * (stream * p.ranks_per_node + target), place.base + record
        )
        isa.store_i64(sources.heads + 8 * node, record)
        num_left -= record - head


def next_source(p: DispatchParams, place: Place, sources: Sources, first: int) -> int:
    """Return the next node, from `first` on, that has records here; wait until one has."""
    tails = p.rdma_tail + 8 * channel_of() * p.num_nodes
    for step in range(p.num_nodes):
        node = (first + step) % p.num_nodes
        head = isa.load_i64(sources.heads + 8 * node)
        total = isa.load_i64(sources.totals + 8 * node)
        if head < isa.load_i64(sources.tails + 8 * node):
            return node
        if head < total:
            tail = min(isa.load_acquire(tails + 8 * node) - place.base, total)
            if tail > head:
                isa.store_i64(sources.tails + 8 * node, tail)
                return node
        value = place.base + head + 1 if head < total else NEVER
        isa.store_i64(sources.wanted + 8 * node, value)
    node = isa.wait_any(tails, 8, sources.wanted, p.num_nodes, first)
    tail = isa.load_acquire(tails + 8 * node) - place.base
    isa.store_i64(sources.tails + 8 * node, min(tail, isa.load_i64(sources.totals + 8 * node)))
    return node


def forward_row(
    p: DispatchParams, place: Place, target: int, node: int, record: int, row: int
) -> int:
    """Copy a record to local rank `target` as row `row` of its ring, if it wants it.

    Returns:
        1 if it does, else 0.
    """
    ring = (channel_of() * p.num_nodes + node) * p.dispatch_rdma_recv
    at = ring + record % p.dispatch_rdma_recv
    info = p.rdma_info_addr + at * p.info_bytes
    wanted = isa.load_i32(info + 4) >> target & 1
    ends = scratch_of(p) + 8 * (4 * p.num_nodes + node)
    end = isa.load_i64(ends) + wanted
    isa.store_i64(ends, end)
    # Combine finds by these counts who added to a record, and which of their rows.
    begin = isa.load_i64(scratch_of(p) + 8 * (3 * p.num_nodes + node))
    kept = (node * p.most_tokens + begin + record) * p.ranks_per_node + target
    isa.store_i32(p.nvl_ends_addr + 4 * kept, end)
    if wanted:
        peer = place.node * p.ranks_per_node + target
        theirs = channel_of() * p.ranks_per_node + place.local
        slot = theirs * p.dispatch_nvl_recv + row % p.dispatch_nvl_recv
        idx = info + 8
        topk = TopkRow(idx, idx + 4 * p.num_topk, p.num_topk, p.experts_per_rank, p.world_size)
        ids = 4 * p.num_topk * slot
        isa.copy_topk(peer, p.nvl_idx + ids, p.nvl_weights + ids, topk)
        isa.store(peer, p.nvl_nodes + 8 * slot, isa.load_i32(info))
        isa.copy_row_bulk(
            peer,
            p.nvl_rows + slot * p.x_row_bytes,
            p.rdma_rows_addr + at * p.x_row_bytes,
            p.x_row_bytes,
        )
    return wanted


def return_credits(p: DispatchParams, place: Place) -> None:
    """Give the slots that all forwarders have gone through back to their sources."""
    credited, totals = scratch_of(p), scratch_of(p) + 8 * p.num_nodes
    wanted = scratch_of(p) + 16 * p.num_nodes
    num_left = 0
    for node in range(p.num_nodes):
        stream = channel_of() * p.num_nodes + node
        isa.wait_ge(p.told + 8 * stream, place.base + EPOCH)
        meta = p.channel_meta_addr + stream * p.channel_meta_bytes + 8 * p.ranks_per_node
        total = isa.load_i32(meta + 4) - isa.load_i32(meta)
        isa.store_i64(credited + 8 * node, 0)
        isa.store_i64(totals + 8 * node, total)
        for local in range(p.ranks_per_node):
            isa.store_i64(wanted + 8 * (node * p.ranks_per_node + local), NEVER)
        if total == 0:
            give_credit(p, place, node, last_signal(0, 0, 0))
        num_left += total
    while num_left > 0:
        num_returned = 0
        for node in range(p.num_nodes):
            num_returned += return_credit(p, place, node, wanted)
        num_left -= num_returned
        if num_left > 0 and num_returned == 0:
            first = p.forwarded + 8 * channel_of() * p.num_nodes * p.ranks_per_node
            isa.wait_any(first, 8, wanted, p.num_nodes * p.ranks_per_node, 0)


def return_credit(p: DispatchParams, place: Place, node: int, wanted: int) -> int:
    """Return a node's slots if they make a chunk or are the last; else note what to wait for.

    Returns:
        Number of slots given back.
    """
    credited = isa.load_i64(scratch_of(p) + 8 * node)
    total = isa.load_i64(scratch_of(p) + 8 * (p.num_nodes + node))
    first = (channel_of() * p.num_nodes + node) * p.ranks_per_node
    target = min(credited + p.dispatch_rdma_send, total)
    if credited == total:
        return 0
    least = isa.min_words(p.forwarded + 8 * first, 8, p.ranks_per_node) - place.base
    if least >= target:
        count = least - credited
        give_credit(p, place, node, last_signal(credited, count, total))
        isa.store_i64(scratch_of(p) + 8 * node, least)
        for local in range(p.ranks_per_node):
            isa.store_i64(wanted + 8 * (node * p.ranks_per_node + local), NEVER)
        return count
    # Wait for the first forwarder that is behind, or for the last if none is any more.
    behind = 0
    while behind < p.ranks_per_node - 1 and (
        isa.load(p.forwarded + 8 * (first + behind)) >= place.base + target
    ):
        behind += 1
    for local in range(p.ranks_per_node):
        value = place.base + target if local == behind else NEVER
        isa.store_i64(wanted + 8 * (node * p.ranks_per_node + local), value)
    return 0


def give_credit(p: DispatchParams, place: Place, node: int, value: int) -> None:
    """Add to the credit that the source on a node has for this node's ring."""
    credit = p.rdma_credit + 8 * (channel_of() * p.num_nodes + place.node)
    if node == place.node:
        isa.fence_release()
        isa.add(p.rank, credit, value)
    else:
        peer = node * p.ranks_per_node + place.local
        isa.put_signal(peer, credit, value, p.num_sms // 2 + channel_of())
