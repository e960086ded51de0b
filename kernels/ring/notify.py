"""`ring` notify: ranks meet; a fresh dispatch also learns where every row goes.

Grid: `num_sms` blocks. Every dispatch: block 0 stores the epoch into `present[rank]` of every rank
(relaxed, it publishes nothing) and acquires `present` of all ranks: everybody has left the last
dispatch, so `begins` may be rewritten. DeepEP has this barrier to reset its flags, cached or not.

Fresh: the even block of each channel counts the channel's tokens by destination, one share a warp,
and adds 1 to `counted` (own rank, release). Block 0 acquires `counted`, num_sms / 2 an epoch, and
writes to `begins[rank]` of each rank d how many rows of this rank go to d before each channel, and
in all; then it stores the epoch into `exchanged[rank]` there (release). It acquires `exchanged` of
all ranks, and sums totals to `bases`, each source's first row here. A row's place in `recv_x` is
its source's base + its channel's begin + its position in the stream. Receivers find their streams'
lengths there, which DeepEP's senders send ahead of each channel.

It cannot deadlock: `counted` and `present` are sent before anything is waited for, `exchanged`
after waiting for these only. `counted` and `exchanged` count fresh epochs, `present` all.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import Matrix, TopkRow
from kernels.ring.streams import channel_begin

COUNTING, MEETING, EXCHANGING = range(3)


class NotifyParams(NamedTuple):
    """Parameters of `notify`: a region's name is its offset, with `_addr` its address."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    num_tokens: int
    num_topk: int
    experts_per_rank: int
    cached: int
    counts_bytes: int
    begins_bytes: int
    topk_idx_addr: int
    recv_counts_addr: int
    warp_counts_addr: int
    channel_counts_addr: int
    own_begins_addr: int
    begins: int
    begins_addr: int
    bases_addr: int
    notify_epoch: int
    fresh_epoch: int
    counted: int
    present: int
    exchanged: int


def notify(p: NotifyParams) -> None:
    """Meet all ranks; fresh, exchange where rows go."""
    sm, warp = isa.sm_id(), isa.warp_id()
    isa.mark(COUNTING)
    if sm % 2 == 0 and not p.cached:
        count_channel(p, sm // 2, warp)
    if sm == 0:
        isa.mark(MEETING)
        meet(p, warp)
        if not p.cached:
            isa.mark(EXCHANGING)
            exchange(p, warp)


def count_channel(p: NotifyParams, channel: int, warp: int) -> None:
    """Count a channel's tokens by destination rank; run by all warps of its even block."""
    begin = channel_begin(p.num_tokens, channel, p.num_sms)
    num_tokens = channel_begin(p.num_tokens, channel + 1, p.num_sms) - begin
    first = begin + share_begin(num_tokens, warp, p.num_warps)
    last = begin + share_begin(num_tokens, warp + 1, p.num_warps)
    idx_addr = p.topk_idx_addr + 4 * p.num_topk * first
    topk = TopkRow(idx_addr, 0, p.num_topk, p.experts_per_rank, p.world_size)
    counts_addr = p.warp_counts_addr + channel * p.num_warps * p.counts_bytes
    isa.count_ranks(topk, last - first, counts_addr + warp * p.counts_bytes)
    isa.block_sync()
    if warp == 0:
        counts = Matrix(counts_addr, p.world_size, p.counts_bytes)
        isa.sum_rows(counts, p.num_warps, 0, p.channel_counts_addr + channel * p.counts_bytes)
        isa.fence_release()
        isa.add(p.rank, p.counted, 1)


def meet(p: NotifyParams, warp: int) -> None:
    """Wait until every rank has come to this launch; run by all warps of block 0."""
    epoch = isa.load(p.notify_epoch) + 1
    for peer in range(warp, p.world_size, p.num_warps):
        isa.store(peer, p.present + 8 * p.rank, epoch)
    for peer in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.present + 8 * peer, epoch)
    isa.block_sync()
    if warp == 0:
        isa.store(p.rank, p.notify_epoch, epoch)


def exchange(p: NotifyParams, warp: int) -> None:
    """Tell every rank where this rank's rows go, and learn the same of all."""
    epoch = isa.load(p.fresh_epoch) + 1
    num_channels = p.num_sms // 2
    isa.wait_ge(p.counted, epoch * num_channels)
    for peer in range(warp, p.world_size, p.num_warps):
        row = p.own_begins_addr + peer * p.begins_bytes
        begin = 0
        for channel in range(num_channels):
            isa.store_i32(row + 4 * channel, begin)
            begin += isa.load_i32(p.channel_counts_addr + channel * p.counts_bytes + 4 * peer)
        isa.store_i32(row + 4 * num_channels, begin)
        isa.warp_sync()
        isa.copy_bytes(peer, p.begins + p.rank * p.begins_bytes, row, p.begins_bytes)
        isa.store_release(peer, p.exchanged + 8 * p.rank, epoch)
    for source in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.exchanged + 8 * source, epoch)
    isa.block_sync()
    if warp == 0:
        base = 0
        for source in range(p.world_size):
            total = isa.load_i32(p.begins_addr + source * p.begins_bytes + 4 * num_channels)
            isa.store_i32(p.recv_counts_addr + 4 * source, total)
            isa.store_i32(p.bases_addr + 4 * source, base)
            base += total
        isa.store(p.rank, p.fresh_epoch, epoch)
