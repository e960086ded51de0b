"""Exchange counts: every rank learns how many rows of each column come from every other.

One block. Warps share the peers: write this rank's `begins` to `peer_begins[rank]` of each, then
add 1 to `hello[rank]` there (release). Acquire `hello` of all ranks. What this op needs later is
copied out of `peer_begins` before the kernel ends: a peer writes it again only after it has
received this rank's rows, which later launches send.

Where splits are padded, each warp also finds the longest message of its peers, and all messages
begin where equal splits of the longest of all begin: every rank sees the same `begins`.

It cannot deadlock: `hello` is sent before anything is waited for.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node, via_rank
from kernels.isa import Target


class CountsParams(NamedTuple):
    """Parameters of `counts`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    ranks_per_node: int
    rails: int
    base_ns: int
    num_warps: int
    counts_per_rank: int
    is_padded: int
    begins_bytes: int
    begins_addr: int
    begins_stage: int
    peer_begins: int
    peer_begins_addr: int
    recv_counts_addr: int
    send_begins_addr: int
    recv_begins_addr: int
    pair_begins_addr: int
    most_rows_addr: int
    counts_epoch: int
    hello: int


def counts(p: CountsParams) -> None:
    """Tell every rank what it will get; work out where everything goes."""
    sm, warp = isa.sm_id(), isa.warp_id()
    if sm > 0:
        return
    epoch = isa.load(p.counts_epoch) + 1
    isa.pause(p.base_ns)
    row = p.peer_begins + p.rank * p.begins_bytes
    for peer in range(warp, p.world_size, p.num_warps):
        flag = p.hello + 8 * p.rank
        if is_same_node(p.rank, peer, p.ranks_per_node):
            isa.copy_bytes(peer, row, p.begins_addr, p.begins_bytes)
            isa.fence_release()
            isa.add(peer, flag, 1)
        else:
            via = via_rank(p.rank, peer, p.ranks_per_node, p.rails)
            stage = p.begins_stage + p.rank % p.ranks_per_node * p.begins_bytes
            isa.copy_bytes(via, stage, p.begins_addr, p.begins_bytes)
            isa.fence_release()
            channel = p.rank % p.ranks_per_node
            isa.put_bytes_via(via, stage, Target(peer, row), p.begins_bytes, channel)
            isa.put_signal_via(via, Target(peer, flag), 1, channel)
    for source in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.hello + 8 * source, epoch)
        if p.is_padded:
            isa.store_i32(p.most_rows_addr + 4 * source, longest_message(p, source))
    isa.block_sync()
    if warp == 0:
        write_begins(p)
        if p.is_padded:
            write_equal_splits(p)
        isa.store(p.rank, p.counts_epoch, epoch)


def write_begins(p: CountsParams) -> None:
    """Write `recv_counts`, and where rows begin by rank and by (source, expert) pair."""
    width = p.counts_per_rank
    for peer in range(p.world_size + 1):
        isa.store_i32(p.send_begins_addr + 4 * peer, isa.load_i32(p.begins_addr + 4 * peer * width))
    received = 0
    for source in range(p.world_size):
        isa.store_i32(p.recv_begins_addr + 4 * source, received)
        own = p.peer_begins_addr + source * p.begins_bytes + 4 * p.rank * width
        for column in range(width):
            count = isa.load_i32(own + 4 * column + 4) - isa.load_i32(own + 4 * column)
            isa.store_i32(p.recv_counts_addr + 4 * (source * width + column), count)
            received += count
    isa.store_i32(p.recv_begins_addr + 4 * p.world_size, received)
    place = 0
    for column in range(width):
        for source in range(p.world_size):
            isa.store_i32(p.pair_begins_addr + 4 * (source * width + column), place)
            place += isa.load_i32(p.recv_counts_addr + 4 * (source * width + column))


def longest_message(p: CountsParams, source: int) -> int:
    """Return the rows of the longest message of a rank."""
    own = p.peer_begins_addr + source * p.begins_bytes
    begin, most = isa.load_i32(own), 0
    for peer in range(p.world_size):
        end = isa.load_i32(own + 4 * peer + 4)
        most = max(most, end - begin)
        begin = end
    return most


def write_equal_splits(p: CountsParams) -> None:
    """Let each rank's message begin where those before it end at their longest."""
    most = 0
    for source in range(p.world_size):
        most = max(most, isa.load_i32(p.most_rows_addr + 4 * source))
    for peer in range(p.world_size + 1):
        isa.store_i32(p.send_begins_addr + 4 * peer, peer * most)
        isa.store_i32(p.recv_begins_addr + 4 * peer, peer * most)
