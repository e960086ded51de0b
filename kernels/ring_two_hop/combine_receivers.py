"""The end of `ring_two_hop` combine: the nodes' sums of a token become its output.

Flags and rings as `kernels.ring_two_hop.combine` says.
"""

from kernels import isa
from kernels.isa import RowList
from kernels.ring_two_hop.params import (
    WORKER_WARPS,
    CombineParams,
    Place,
    channel_of,
    channel_tokens,
    last_signal,
    scratch_of,
)


def receive_sums(p: CombineParams, place: Place, receiver: int) -> None:
    """Sum the nodes' sums of every token that falls to this receiver."""
    num_receivers = WORKER_WARPS - p.ranks_per_node
    tokens = channel_tokens(p.num_tokens, channel_of(), p.num_sms)
    reduced = p.reduced + 8 * (channel_of() * WORKER_WARPS + receiver)
    rows = scratch_of(p) + 8 * p.num_nodes
    isa.store(p.rank, reduced, place.base + receiver)
    for node in range(p.num_nodes):
        isa.store_i64(scratch_of(p) + 8 * node, place.base)
    for step in range(receiver, tokens.end - tokens.begin, num_receivers):
        token = tokens.begin + step
        at = 4 * p.num_copies * token
        num_nodes = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_nodes):
            node = isa.load_i32(p.send_nodes_addr + at + 4 * index)
            slot = isa.load_i32(p.send_slots_addr + at + 4 * index)
            stream = channel_of() * p.num_nodes + node
            # The last tail seen, by node.
            if isa.load_i64(scratch_of(p) + 8 * node) <= place.base + slot:
                seen = isa.wait_ge(p.back_tail + 8 * stream, place.base + slot + 1)
                isa.store_i64(scratch_of(p) + 8 * node, seen)
            ring = stream * p.combine_rdma_recv
            isa.store_i32(rows + 4 * index, ring + slot % p.combine_rdma_recv)
        out_addr = p.out_addr + token * p.y_row_bytes
        isa.reduce_rows(out_addr, RowList(num_nodes, 0, rows, p.back_rows, p.y_row_bytes))
        isa.store_release(p.rank, reduced, place.base + step + num_receivers)


def return_credits(p: CombineParams, place: Place) -> None:
    """Give the slots of tokens that have been summed back to the nodes they came from."""
    num_receivers = WORKER_WARPS - p.ranks_per_node
    reduced = p.reduced + 8 * channel_of() * WORKER_WARPS
    received, credited = scratch_of(p), scratch_of(p) + 8 * p.num_nodes
    for node in range(p.num_nodes):
        isa.store_i64(received + 8 * node, 0)
        isa.store_i64(credited + 8 * node, 0)
    tokens = channel_tokens(p.num_tokens, channel_of(), p.num_sms)
    num_tokens = tokens.end - tokens.begin
    complete = 0
    for step in range(num_tokens):
        if step >= complete:
            isa.wait_ge(reduced + 8 * (step % num_receivers), place.base + step + 1)
            least = isa.min_words(reduced, 8, num_receivers) - place.base
            complete = max(step + 1, min(least, num_tokens))
        token = tokens.begin + step
        at = 4 * p.num_copies * token
        num_nodes = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_nodes):
            node = isa.load_i32(p.send_nodes_addr + at + 4 * index)
            end = isa.load_i32(p.send_slots_addr + at + 4 * index) + 1
            begin = isa.load_i64(credited + 8 * node)
            isa.store_i64(received + 8 * node, end)
            if end - begin == p.combine_rdma_send:
                give_credit(p, place, node, p.combine_rdma_send)
                isa.store_i64(credited + 8 * node, end)
    for node in range(p.num_nodes):
        begin, end = isa.load_i64(credited + 8 * node), isa.load_i64(received + 8 * node)
        give_credit(p, place, node, last_signal(begin, end - begin, end))


def give_credit(p: CombineParams, place: Place, node: int, value: int) -> None:
    """Add to the credit that this rank's rail peer on a node has for this rank's ring."""
    credit = p.back_credit + 8 * (channel_of() * p.num_nodes + place.node)
    if node == place.node:
        isa.fence_release()
        isa.add(p.rank, credit, value)
    else:
        peer = node * p.ranks_per_node + place.local
        isa.put_signal(peer, credit, value, p.num_sms // 2 + channel_of())
