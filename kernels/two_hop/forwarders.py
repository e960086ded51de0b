"""The second hop of `two_hop`: forwarders write what came over the rail into its final places.

Flags, rings and records as `kernels.two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import TopkRow
from kernels.two_hop.params import DispatchParams, node_at, relative
from kernels.two_hop.senders import keep_row, write_rows
from kernels.two_hop.streams import Served, end_chunk, next_chunk, num_served, open_streams


def forward_rows(p: DispatchParams, forwarder: int, num_forwarders: int) -> None:
    """Forward the chunks of this warp's streams as they come."""
    num_streams = (p.num_nodes - 1) * p.num_sms * p.channel_warps
    served = Served(
        forwarder,
        num_forwarders,
        num_served(num_streams, forwarder, num_forwarders),
        p.wanted_addr + 8 * forwarder * p.num_streams_per_warp,
        p.places_addr + 4 * forwarder * p.num_streams_per_warp,
        p.expected_addr,
        p.received_addr,
        p.chunk_rows,
        p.chunk_rows,
    )
    num_left = open_streams(served)
    turn = 0
    while num_left > 0:
        chunk = next_chunk(served, p.tail, turn)
        turn = chunk.which + 1
        for step in range(chunk.num_rows):
            forward_row(p, chunk.stream, chunk.place + step, chunk.at + step)
        # Until it returns, bulk copies may still read the ring.
        isa.fence_release()
        give_credit(p, chunk.stream)
        num_left -= end_chunk(served, chunk)


def forward_row(p: DispatchParams, stream: int, place: int, at: int) -> None:
    """Write one row of a ring to the ranks of this node that its record names."""
    slot = stream * p.ring_rows + at % p.ring_rows
    record = p.ring_records_addr + slot * p.record_bytes
    kept = p.kept_addr + (stream * p.channel_rows + place) * p.kept_bytes
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
    source = other * p.ranks_per_node + p.rank % p.ranks_per_node
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    isa.put_signal(source, p.credit + 8 * theirs, p.chunk_rows, num_channels + channel)
