"""The second hop of `two_hop/staged`: rows of the own tokens and of the rail into final places.

Every worker takes an even, contiguous share of a rank's items: the own tokens that the own node
wants, then the rows that the library brought. It reads the places of an item's rows, from a record
or as `kept`, and writes them. Every rank adds 1 to `grant[local_rank]` of its node: its `recv_x`
may be overwritten; workers have acquired it of their node. Each block ends by adding 1 to `done` of
its node's ranks (release); block 0 acquires it, num_sms an epoch from each of them: all that writes
to `recv_x` is on the own node.

It cannot deadlock: `grant` is sent before anything is waited for, and `done` waits for `grant`
only. Blocks must be resident together.
"""

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import TopkRow
from kernels.two_hop.senders import keep_row, write_rows
from kernels.two_hop.staged.params import ForwardParams, Items, items_of, kept_at


def forward(p: ForwardParams) -> None:
    """Write every item of this rank to the ranks of its node that want it."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    first_rank = p.rank - p.rank % p.ranks_per_node
    if sm == 0:
        # Earlier kernels have ended: there is nothing to release.
        for local in range(warp, p.ranks_per_node, p.num_warps):
            isa.add(first_rank + local, p.grant + 8 * (p.rank % p.ranks_per_node), 1)
        if not p.cached:
            for source in range(warp, p.world_size, p.num_warps):
                counts = p.all_counts_addr + source * p.counts_bytes
                isa.store_i32(p.recv_counts_addr + 4 * source, isa.load_i32(counts + 4 * p.rank))
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.wait_ge(p.grant + 8 * local, epoch)
    isa.block_sync()

    items = items_of(p)
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    total = items.num_near + items.num_rail
    for item in range(
        share_begin(total, worker, num_workers), share_begin(total, worker + 1, num_workers)
    ):
        if item < items.num_near:
            send_near(p, items, item)
        else:
            forward_row(p, items, item)

    isa.block_sync()
    isa.fence_release()
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.add(first_rank + local, p.done, 1)
    if warp == 0:
        isa.store(p.rank, p.dispatch_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)


def send_near(p: ForwardParams, items: Items, item: int) -> None:
    """Write an own token to the ranks of this node."""
    kept = kept_at(p, items, item)
    token = isa.load_i32(kept + 4)
    at = 4 * p.num_topk * token
    idx, weights = p.topk_idx_addr + at, p.topk_weights_addr + at
    topk = TopkRow(idx, weights, p.num_topk, p.experts_per_rank, p.world_size)
    write_rows(p, kept, topk, p.x_addr + token * p.x_row_bytes)


def forward_row(p: ForwardParams, items: Items, item: int) -> None:
    """Write a row of the rail to the ranks of this node that its record names."""
    row = item - items.num_near
    record = p.rail_records_addr + row * p.record_bytes
    kept = kept_at(p, items, item)
    if not p.cached:
        first_rank = p.rank - p.rank % p.ranks_per_node
        count = 0
        for local in range(p.ranks_per_node):
            place = isa.load_i32(record + 4 * local)
            if place >= 0:
                keep_row(p, kept, count, first_rank + local, place)
                count += 1
        isa.store_i32(kept, count)
    ids = record + 4 * p.ranks_per_node
    topk = TopkRow(ids, ids + 4 * p.num_topk, p.num_topk, p.experts_per_rank, p.world_size)
    write_rows(p, kept, topk, p.rail_x_addr + row * p.x_row_bytes)
