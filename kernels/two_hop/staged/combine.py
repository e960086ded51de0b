"""The first hop back of `two_hop/staged`: each node adds its rows of every token.

Items are those of the last dispatch, in even, contiguous shares. A worker reads an item's rows from
the ranks of the node, adds them in ascending order and rounds the sum: of an own token into `back`,
of a row of the rail into `rail_back`, which the library takes home to the others' `back`. The sum
over nodes is `kernels.packing.unpack.reduce`.

Every rank adds 1 to `ready[local_rank]` of its node (release): its `y` may be read; workers have
acquired it. Each block ends by adding 1 to `read` of its node's ranks; block 0 acquires it, num_sms
an epoch from each: nobody reads this rank's `y` any more.

It cannot deadlock: `ready` is sent before anything is waited for, and `read` waits for `ready`
only. Blocks must be resident together.
"""

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import RowList
from kernels.two_hop.staged.params import SumParams, items_of, kept_at


def sum_nodes(p: SumParams) -> None:
    """Add the rows of every item of this rank."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    first_rank = p.rank - p.rank % p.ranks_per_node
    if sm == 0:
        isa.fence_release()
        for local in range(warp, p.ranks_per_node, p.num_warps):
            isa.add(first_rank + local, p.ready + 8 * (p.rank % p.ranks_per_node), 1)
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.wait_ge(p.ready + 8 * local, epoch)
    isa.block_sync()

    items = items_of(p)
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    total = items.num_near + items.num_rail
    for item in range(
        share_begin(total, worker, num_workers), share_begin(total, worker + 1, num_workers)
    ):
        kept = kept_at(p, items, item)
        ranks = kept + 8
        rows = RowList(isa.load_i32(kept), ranks, ranks + 4 * p.ranks_per_node, p.y, p.y_row_bytes)
        into = p.back_addr + (items.near_begin + item) * p.y_row_bytes
        if item >= items.num_near:
            into = p.rail_back_addr + (item - items.num_near) * p.y_row_bytes
        isa.reduce_rows(into, rows)

    isa.block_sync()
    isa.fence_release()
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.add(first_rank + local, p.read, 1)
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.read, epoch * p.ranks_per_node * p.num_sms)
