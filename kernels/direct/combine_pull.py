"""`direct` combine by pull: each rank reads its tokens' rows and adds them in registers.

Grid: `num_sms` blocks of `num_warps` warps; worker w = sm * num_warps + warp owns an even,
contiguous share of the rank's tokens. Where each token's rows are was kept by dispatch in `send_*`,
in ascending order of ranks.

Block 0 adds 1 to `ready[rank]` of every rank (release): the rows `y` of this rank may be read.
Every block acquires `ready` of all ranks, reduces its tokens into `out`, and adds 1 to `read` of
every rank (release). Block 0 acquires `read` of its own rank, R x num_sms an epoch: nobody reads
`y` any more, the kernel may end and `y` be overwritten.

It cannot deadlock: `ready` is sent before anything is waited for, `read` after waiting for `ready`
only.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin, signal
from kernels.isa import RowList

WAITING, REDUCING, ENDING = range(4, 7)


class PullParams(NamedTuple):
    """Parameters of `combine_pull`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    ranks_per_node: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_copies: int
    y_row_bytes: int
    y: int
    out_addr: int
    send_num_addr: int
    send_ranks_addr: int
    send_rows_addr: int
    combine_epoch: int
    ready: int
    read: int


def combine_pull(p: PullParams) -> None:
    """Sum each token's rows, read from the ranks that hold them."""
    sm, warp = isa.sm_id(), isa.warp_id()
    worker = sm * p.num_warps + warp
    num_workers = p.num_sms * p.num_warps
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1

    isa.mark(WAITING)
    if sm == 0:
        isa.fence_release()
        for peer in range(warp, p.world_size, p.num_warps):
            signal(p.rank, peer, p.ranks_per_node, p.ready + 8 * p.rank, 1, 0)
    for peer in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.ready + 8 * peer, epoch)
    isa.block_sync()

    isa.mark(REDUCING)
    first = share_begin(p.num_tokens, worker, num_workers)
    last = share_begin(p.num_tokens, worker + 1, num_workers)
    for token in range(first, last):
        at = 4 * p.num_copies * token
        num_rows = isa.load_i32(p.send_num_addr + 4 * token)
        rows = RowList(num_rows, p.send_ranks_addr + at, p.send_rows_addr + at, p.y, p.y_row_bytes)
        isa.reduce_rows(p.out_addr + token * p.y_row_bytes, rows)

    isa.mark(ENDING)
    isa.block_sync()
    isa.fence_release()
    for peer in range(warp, p.world_size, p.num_warps):
        signal(p.rank, peer, p.ranks_per_node, p.read, 1, sm)
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.read, epoch * p.world_size * p.num_sms)
