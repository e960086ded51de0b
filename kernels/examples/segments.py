"""`segments`: `direct`'s dispatch; combine sends each source its rows as one segment, then adds.

The rows that a rank holds of a source are consecutive, and so are their places in the source's
`stage`: each of the W workers (warps of all blocks) copies an even share of every segment. Workers
set `free[rank]` of every rank to the epoch (release): the `stage` of this rank may be written. They
acquire `free[s]` before they write to s, then add 1 to `arrived[rank]` of s (release), and acquire
`arrived` of all ranks, W an epoch: all rows are here, each worker adds those of its tokens. `free`
is set before anything is waited for, `arrived` after waiting for `free` only: no deadlock. A launch
ends after it has read its own `stage`, and `copy_row` has read `y` when it returns.
"""

from collections import namedtuple

from kernels import direct, isa
from kernels.exchange import share_begin
from kernels.knobs import Knob
from kernels.protocol import KernelLaunch, Protocol

WARPS = Knob("warps", "warps of a block", (4, 8, 16, 24, 32), 16)
P = namedtuple("P", """rank world_size num_sms num_warps num_tokens num_copies y_row_bytes y_addr
    counts_row_bytes out_addr counts_addr bases_addr send_num_addr send_ranks_addr send_rows_addr
    places_addr stage combine_epoch free arrived""")  # fmt: skip


def combine(p: P) -> None:
    sm, warp = isa.sm_id(), isa.warp_id()
    worker, num_workers = sm * p.num_warps + warp, p.num_sms * p.num_warps
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    for peer in range(worker, p.world_size, num_workers):
        isa.store_release(peer, p.free + 8 * p.rank, epoch)
    for turn in range(p.world_size):
        source = (p.rank + turn) % p.world_size
        isa.wait_ge(p.free + 8 * source, epoch)
        push(p, source, worker, num_workers)
        isa.fence_release()
        isa.add(source, p.arrived + 8 * p.rank, 1)
    for holder in range(p.world_size):
        isa.wait_ge(p.arrived + 8 * holder, epoch * num_workers)
    counts = p.counts_addr + p.counts_row_bytes * p.rank
    places = p.places_addr + 4 * p.num_copies * worker
    last = share_begin(p.num_tokens, worker + 1, num_workers)
    for token in range(share_begin(p.num_tokens, worker, num_workers), last):
        num_rows = isa.load_i32(p.send_num_addr + 4 * token)
        for index in range(num_rows):
            at = 4 * (p.num_copies * token + index)
            peer = 4 * (p.world_size + isa.load_i32(p.send_ranks_addr + at))
            place = isa.load_i32(p.send_rows_addr + at) - isa.load_i32(p.bases_addr + peer)
            isa.store_i32(places + 4 * index, isa.load_i32(counts + peer) + place)
        rows = isa.RowList(num_rows, 0, places, p.stage, p.y_row_bytes)
        isa.reduce_rows(p.out_addr + p.y_row_bytes * token, rows)
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)


def push(p: P, source: int, worker: int, num_workers: int) -> None:
    counts, size = p.counts_addr + p.counts_row_bytes * source, p.y_row_bytes
    count = isa.load_i32(counts + 4 * p.rank)
    y_addr = p.y_addr + size * isa.load_i32(p.bases_addr + 4 * source)
    stage = p.stage + size * isa.load_i32(counts + 4 * (p.world_size + p.rank))
    last = share_begin(count, worker + 1, num_workers)
    for row in range(share_begin(count, worker, num_workers), last):
        isa.copy_row(source, stage + size * row, y_addr + size * row, size)


COMBINE = (KernelLaunch("combine", combine, P, WARPS.of),)
mine = Protocol(
    kernel="segments",
    variant="push",
    summary="dispatch of direct; combine sends whole segments",
    regions=lambda shape: {
        **direct.regions(shape),
        **dict.fromkeys(("free", "arrived"), 8 * shape.world_size),
        "places": 4 * direct.num_copies(shape) * shape.num_sms * WARPS.of(shape),
    },
    launches=lambda op, form: COMBINE if op == "combine" else direct.PUSH.launches(op, form),
    refuses=lambda shape, op, cross_rail: "stores reach one node" if shape.num_nodes > 1 else None,
    settings=direct.settings,
    knobs=(WARPS,),
)
