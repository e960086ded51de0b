"""The second hop of `two_hop`: forwarders write what came over the rail into its final places.

Flags, rings and records as `kernels.two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import TopkRow
from kernels.two_hop.params import DispatchParams, mate_on, node_at, relative
from kernels.two_hop.senders import keep_row, write_rows
from kernels.two_hop.streams import Served, next_chunk, num_served, open_streams


def forwarder_streams(p: DispatchParams) -> Served:
    """Return the streams of this warp, a forwarder."""
    forwarder = isa.sm_id() * p.forward_warps + isa.warp_id() - 2 * p.channel_warps
    return Served(
        forwarder,
        p.num_forwarders,
        num_served(p.num_remote_streams, forwarder, p.num_forwarders),
        p.wanted_addr + 8 * forwarder * p.num_streams_per_warp,
        p.places_addr + 4 * forwarder * p.num_streams_per_warp,
        p.expected_addr,
        p.received_addr,
        p.chunk_rows,
        p.chunk_rows,
    )


def forward_rows(p: DispatchParams) -> None:
    """Write the rows of this warp's streams into their final places as they come."""
    num_left = open_streams(forwarder_streams(p))
    turn = 0
    while num_left > 0:
        chunk = next_chunk(forwarder_streams(p), p.tail, turn)
        turn = chunk.which + 1
        num_left -= chunk.is_last
        kept = p.kept_addr + (chunk.stream * p.channel_rows + chunk.place) * p.kept_bytes
        for at in range(chunk.at, chunk.at + chunk.num_rows):
            forward_row(p, chunk.stream * p.ring_rows + at % p.ring_rows, kept)
            kept += p.kept_bytes
        # Until it returns, bulk copies may still read the ring.
        isa.fence_release()
        give_credit(p, chunk.stream)


def forward_row(p: DispatchParams, slot: int, kept: int) -> None:
    """Write a row of the ring to the ranks that its record names, or that were kept."""
    record = p.ring_records_addr + slot * p.record_bytes
    if not p.cached:
        first_rank = p.rank - p.rank % p.ranks_per_node
        count = 0
        for local in range(p.ranks_per_node):
            row = isa.load_i32(record + 4 * local)
            if row >= 0:
                keep_row(p, kept, count, first_rank + local, row)
                count += 1
        isa.store_i32(kept, count)
    ids = record + 4 * p.ranks_per_node
    topk = TopkRow(ids, ids + 4 * p.num_topk, p.num_topk, p.experts_per_rank, p.world_size)
    write_rows(p, kept, topk, p.ring_addr + slot * p.x_row_bytes)


def give_credit(p: DispatchParams, stream: int) -> None:
    """Tell a stream's source that a chunk of its ring may be overwritten: it has been read."""
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    other, channel = node_at(node, stream // num_channels, p.num_nodes), stream % num_channels
    source = mate_on(p.rank, other, p.ranks_per_node)
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    isa.put_signal(source, p.credit + 8 * theirs, p.chunk_rows, num_channels + channel)
