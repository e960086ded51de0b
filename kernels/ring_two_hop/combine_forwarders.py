"""The middle of `ring_two_hop` combine: a node's rows of a token become one sum, and go home.

Flags and rings as `kernels.ring_two_hop.combine` says.
"""

from kernels import isa
from kernels.isa import RowList
from kernels.ring_two_hop.params import (
    NEVER,
    WORKER_WARPS,
    CombineParams,
    Place,
    Span,
    channel_of,
    last_signal,
    scratch_of,
)


def records_of(p: CombineParams, node: int) -> Span:
    """Return the channel's records of a node, among all that it sent this node."""
    stream = channel_of() * p.num_nodes + node
    meta = p.channel_meta_addr + stream * p.channel_meta_bytes + 8 * p.ranks_per_node
    return Span(isa.load_i32(meta), isa.load_i32(meta + 4))


def ends_addr(p: CombineParams, node: int, record: int) -> int:
    """Return the address of int32 by local rank: its rows among the records up to this one."""
    return p.nvl_ends_addr + 4 * (node * p.most_tokens + record) * p.ranks_per_node


def group_node(p: CombineParams) -> int:
    """Return the node whose records this warp's group sums."""
    return isa.warp_id() // (WORKER_WARPS // p.num_nodes)


def summed_of(p: CombineParams) -> int:
    """Return the offset of what this warp says of the records that it has summed."""
    return p.summed + 8 * (channel_of() * WORKER_WARPS + isa.warp_id())


def sum_records(p: CombineParams, place: Place) -> None:
    """Sum every record of a node that falls to this member of its group, and put the chunks."""
    group_warps = WORKER_WARPS // p.num_nodes
    member = isa.warp_id() % group_warps
    records = records_of(p, group_node(p))
    total = records.end - records.begin
    isa.store(p.rank, summed_of(p), place.base + member)
    for local in range(p.ranks_per_node):
        isa.store_i64(scratch_of(p) + 8 * local, place.base)
    if total == 0 and member == 0:
        put_chunk(p, place, group_node(p), Span(0, 0), 0)
    taken = member
    for begin in range(0, total, p.combine_rdma_send):
        end = min(begin + p.combine_rdma_send, total)
        credit = p.back_credit + 8 * (channel_of() * p.num_nodes + group_node(p))
        isa.wait_ge(credit, place.base + end - p.combine_rdma_recv)
        while taken < end:
            sum_record(p, place, group_node(p), records.begin, taken)
            taken += group_warps
            isa.store_release(p.rank, summed_of(p), place.base + taken)
        if group_warps > 1:
            isa.group_sync(1 + group_node(p), group_warps)
        if isa.warp_id() % group_warps == 0:
            put_chunk(p, place, group_node(p), Span(begin, end), total)


def sum_record(p: CombineParams, place: Place, node: int, first: int, record: int) -> None:
    """Sum a record's rows, in ascending order of local ranks, into its slot."""
    ring = p.combine_nvl_recv // p.num_nodes
    ends = ends_addr(p, node, first + record)
    rows = scratch_of(p) + 8 * p.ranks_per_node
    num_rows = 0
    for local in range(p.ranks_per_node):
        end, before = isa.load_i32(ends + 4 * local), 0
        if record > 0:
            before = isa.load_i32(ends + 4 * (local - p.ranks_per_node))
        if end > before:
            stream = (channel_of() * p.ranks_per_node + local) * p.num_nodes + node
            # The last tail seen, by local rank.
            if isa.load_i64(scratch_of(p) + 8 * local) < place.base + end:
                seen = isa.wait_ge(p.back_nvl_tail + 8 * stream, place.base + end)
                isa.store_i64(scratch_of(p) + 8 * local, seen)
            isa.store_i32(rows + 4 * num_rows, stream * ring + (end - 1) % ring)
            num_rows += 1
    slot = (channel_of() * p.num_nodes + node) * p.combine_rdma_recv
    slot += record % p.combine_rdma_recv
    out = p.back_rows_addr if node == place.node else p.back_send_rows_addr
    isa.reduce_rows(
        out + slot * p.y_row_bytes, RowList(num_rows, 0, rows, p.back_nvl_rows, p.y_row_bytes)
    )


def put_chunk(p: CombineParams, place: Place, node: int, sums: Span, total: int) -> None:
    """Put consecutive sums of a node, which lie together in its ring, and signal them."""
    theirs = channel_of() * p.num_nodes + place.node
    if node == place.node:
        isa.store_release(p.rank, p.back_tail + 8 * theirs, place.base + sums.end)
        return
    peer = node * p.ranks_per_node + place.local
    num_rows = sums.end - sums.begin
    if num_rows > 0:
        slot = sums.begin % p.combine_rdma_recv
        mine = (channel_of() * p.num_nodes + node) * p.combine_rdma_recv + slot
        into = theirs * p.combine_rdma_recv + slot
        isa.put_row(
            peer,
            p.back_rows + into * p.y_row_bytes,
            p.back_send_rows_addr + mine * p.y_row_bytes,
            num_rows * p.y_row_bytes,
            channel_of(),
        )
    value = last_signal(sums.begin, num_rows, total)
    isa.put_signal(peer, p.back_tail + 8 * theirs, value, channel_of())


def return_nvl_credits(p: CombineParams, place: Place) -> None:
    """Tell each local rank how many of its rows have been added."""
    group_warps = WORKER_WARPS // p.num_nodes
    summed = p.summed + 8 * channel_of() * WORKER_WARPS
    finished, wanted = scratch_of(p), scratch_of(p) + 8 * p.num_nodes
    num_left = 0
    for node in range(p.num_nodes):
        records = records_of(p, node)
        num_left += records.end - records.begin
        isa.store_i64(finished + 8 * node, 0)
    for warp in range(WORKER_WARPS):
        isa.store_i64(wanted + 8 * warp, NEVER)
    while num_left > 0:
        num_new = 0
        for node in range(p.num_nodes):
            records = records_of(p, node)
            total = records.end - records.begin
            before = isa.load_i64(finished + 8 * node)
            if before < total:
                first = summed + 8 * node * group_warps
                end = min(isa.min_words(first, 8, group_warps) - place.base, total)
                isa.store_i64(wanted + 8 * (node * group_warps + before % group_warps), NEVER)
                if end > before:
                    tell_ranks(p, place, node, records.begin + end - 1)
                    isa.store_i64(finished + 8 * node, end)
                    num_new += end - before
                    before = end
                if before < total:
                    # The warp whose record is the earliest unfinished one.
                    slowest = node * group_warps + before % group_warps
                    isa.store_i64(wanted + 8 * slowest, place.base + before + 1)
        num_left -= num_new
        if num_left > 0 and num_new == 0:
            isa.wait_any(summed, 8, wanted, WORKER_WARPS, 0)


def tell_ranks(p: CombineParams, place: Place, node: int, record: int) -> None:
    """Give back to each local rank the slots of its rows up to a record."""
    first_rank = place.node * p.ranks_per_node
    theirs = (channel_of() * p.ranks_per_node + place.local) * p.num_nodes + node
    ends = ends_addr(p, node, record)
    # The warps that read the slots have told this one; whoever acquires the credit comes after.
    isa.fence_release()
    for local in range(p.ranks_per_node):
        value = place.base + isa.load_i32(ends + 4 * local)
        isa.store(first_rank + local, p.back_nvl_credit + 8 * theirs, value)
