"""The second hop of `two_hop`: forwarders write what came over the rail into its final places.

Flags, rings and records as `kernels.two_hop.dispatch` says.
"""

from kernels import isa
from kernels.isa import TopkRow
from kernels.two_hop.params import DispatchParams, node_at, relative
from kernels.two_hop.senders import keep_row, write_rows

#: More rows than any stream ever has.
NEVER = 1 << 62


def forward_rows(p: DispatchParams, forwarder: int, num_forwarders: int) -> None:
    """Forward the chunks of this warp's streams as they come."""
    num_remote = (p.num_nodes - 1) * p.num_sms * p.channel_warps
    num_streams = max((num_remote - forwarder + num_forwarders - 1) // num_forwarders, 0)
    wanted = p.wanted_addr + 8 * forwarder * p.num_streams_per_warp
    places = p.places_addr + 4 * forwarder * p.num_streams_per_warp
    num_left = 0
    for index in range(num_streams):
        stream = forwarder + index * num_forwarders
        value = NEVER
        if isa.load_i32(p.expected_addr + 4 * stream) > 0:
            value = isa.load_i64(p.received_addr + 8 * stream) + p.chunk_rows
            num_left += 1
        isa.store_i64(wanted + 8 * index, value)
        isa.store_i32(places + 4 * index, 0)
    while num_left > 0:
        tails = p.tail + 8 * forwarder
        index = isa.wait_any(tails, 8 * num_forwarders, wanted, num_streams)
        stream = forwarder + index * num_forwarders
        end = isa.load_i64(wanted + 8 * index)
        place = isa.load_i32(places + 4 * index)
        count = isa.load_i32(p.expected_addr + 4 * stream)
        num_rows = min(p.chunk_rows, count - place)
        for step in range(num_rows):
            forward_row(p, stream, place + step, end - p.chunk_rows + step)
        # Until it returns, bulk copies may still read the ring.
        isa.fence_release()
        give_credit(p, stream)
        isa.store_i32(places + 4 * index, place + num_rows)
        if place + num_rows < count:
            isa.store_i64(wanted + 8 * index, end + p.chunk_rows)
        else:
            isa.store_i64(wanted + 8 * index, NEVER)
            isa.store_i64(p.received_addr + 8 * stream, end)
            num_left -= 1


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
