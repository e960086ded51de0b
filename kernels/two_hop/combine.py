"""`two_hop` combine: each node adds its rows, one sum per (token, node) goes home over the rail.

Grid: `num_sms` blocks that all do the same. Streams, channels and `kept`, where the rows of each
(token, node) are, are those of the last dispatch. Of a block's warps the first `channel_warps` are
receivers, one for each channel, the others reducers.

A reducer serves streams r, r + R, ... of this rank as their node's end of the rail, the own node's
streams too, whichever of them has room: it reads the rows of one (token, node) from the ranks of
the node, adds them in ascending order and rounds the sum. The sums of the own node go into its ring
here at once, others into `stage` and from there into the ring `back` at their source. After
`combine_chunk_rows` sums the stream's `back_tail` at the source is signalled (a signal of the
channel covers its puts; on the own rank a release). A receiver takes its channel's tokens in order,
acquires the `back_tail` of each of a token's nodes, adds the nodes' sums in ascending order into
`out`, and after a chunk signals `back_credit` where its rows came from; a reducer acquires that
before it begins the next chunk, so `stage` is free by then, too. Both sides keep the stream's rows
of all epochs, chunks rounded up, so nothing is reset.

Every rank adds 1 to `ready[local_rank]` of its node (release): its `y` may be read; reducers have
acquired it. Each block ends by adding 1 to `read` of its node's ranks; block 0 acquires it, num_sms
an epoch from each: nobody reads this rank's `y` any more.

It cannot deadlock. `ready` is sent before anything is waited for. Take, of all receivers that wait,
the stream of one of them: every earlier token of its channel has been added, so every earlier chunk
of the stream has been credited, and one chunk of room is there. The reducer of that stream waits
for any of its streams to have room, so it goes on, and since the streams end it comes to that one.
A reducer waits for nothing else, a receiver for reducers only. A ring of one chunk of one row is
enough. Blocks must be resident together.
"""

from kernels import isa
from kernels.exchange import share_begin
from kernels.isa import RowList, TopkRow
from kernels.two_hop.params import CombineParams, lists_of, node_at, relative
from kernels.two_hop.streams import (
    Chunk,
    Served,
    end_chunk,
    next_chunk,
    num_served,
    open_streams,
)

WAITING, REDUCING, RECEIVING, ENDING = range(6, 10)


def combine(p: CombineParams) -> None:
    """Sum each token's rows inside their nodes, and the nodes' sums at its source."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    first_rank = p.rank - p.rank % p.ranks_per_node

    isa.mark(WAITING)
    if sm == 0:
        isa.fence_release()
        for local in range(warp, p.ranks_per_node, p.num_warps):
            isa.add(first_rank + local, p.ready + 8 * (p.rank % p.ranks_per_node), 1)
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.wait_ge(p.ready + 8 * local, epoch)
    isa.block_sync()

    if warp < p.channel_warps:
        isa.mark(RECEIVING)
        receive_sums(p, sm * p.channel_warps + warp)
    else:
        isa.mark(REDUCING)
        num_reducers = p.num_warps - p.channel_warps
        send_sums(p, sm * num_reducers + warp - p.channel_warps, p.num_sms * num_reducers)

    isa.mark(ENDING)
    isa.block_sync()
    isa.fence_release()
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.add(first_rank + local, p.read, 1)
    if warp == 0:
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.read, epoch * p.ranks_per_node * p.num_sms)


def send_sums(p: CombineParams, reducer: int, num_reducers: int) -> None:
    """Sum the rows of this warp's streams, a chunk at a time, where there is room."""
    num_streams = p.num_nodes * p.num_sms * p.channel_warps
    served = Served(
        reducer,
        num_reducers,
        num_served(num_streams, reducer, num_reducers),
        p.wanted_addr + 8 * reducer * p.num_streams_per_warp,
        p.places_addr + 4 * reducer * p.num_streams_per_warp,
        p.expected_addr,
        p.reduced_addr,
        p.combine_chunk_rows - p.combine_ring_rows,
        p.combine_chunk_rows,
    )
    num_left = open_streams(served)
    turn = 0
    while num_left > 0:
        chunk = next_chunk(served, p.back_credit, turn)
        turn = chunk.which + 1
        send_chunk(p, chunk)
        num_left -= end_chunk(served, chunk)


def send_chunk(p: CombineParams, chunk: Chunk) -> None:
    """Sum a chunk's rows and send the sums to their source."""
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    other = node_at(node, chunk.stream // num_channels, p.num_nodes)
    channel = chunk.stream % num_channels
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    source = other * p.ranks_per_node + p.rank % p.ranks_per_node
    for step in range(chunk.num_rows):
        place = chunk.stream * p.channel_rows + chunk.place + step
        kept = p.kept_addr + place * p.kept_bytes
        ranks, slot = kept + 8, (chunk.at + step) % p.combine_ring_rows
        rows = RowList(isa.load_i32(kept), ranks, ranks + 4 * p.ranks_per_node, p.y, p.y_row_bytes)
        into = p.back + (theirs * p.combine_ring_rows + slot) * p.y_row_bytes
        if other == node:
            isa.reduce_rows(p.back_addr + into - p.back, rows)
        else:
            staged = p.stage_addr + (chunk.stream * p.combine_ring_rows + slot) * p.y_row_bytes
            isa.reduce_rows(staged, rows)
            isa.put_row(source, into, staged, p.y_row_bytes, channel)
    if other == node:
        isa.fence_release()
        isa.add(p.rank, p.back_tail + 8 * theirs, p.combine_chunk_rows)
    else:
        isa.put_signal(source, p.back_tail + 8 * theirs, p.combine_chunk_rows, channel)


def receive_sums(p: CombineParams, channel: int) -> None:
    """Sum the nodes' sums of a channel's tokens as they arrive."""
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    lists = lists_of(p.lists_addr, worker, p.num_topk, p.num_nodes)
    for other in range(p.num_nodes):
        isa.store_i32(lists.cursor + 4 * other, 0)
    first = share_begin(p.num_tokens, channel, num_channels)
    last = share_begin(p.num_tokens, channel + 1, num_channels)
    for token in range(first, last):
        topk = TopkRow(
            p.topk_idx_addr + 4 * p.num_topk * token,
            0,
            p.num_topk,
            p.experts_per_rank * p.ranks_per_node,
            p.num_nodes,
        )
        num_nodes = isa.route(topk, lists.cursor, lists.nodes, lists.places)
        for index in range(num_nodes):
            other = isa.load_i32(lists.nodes + 4 * index)
            place = isa.load_i32(lists.places + 4 * index)
            stream = relative(node, other, p.num_nodes) * num_channels + channel
            begin = isa.load_i64(p.summed_addr + 8 * stream)
            chunk = place // p.combine_chunk_rows + 1
            isa.wait_ge(p.back_tail + 8 * stream, begin + chunk * p.combine_chunk_rows)
            slot = stream * p.combine_ring_rows + (begin + place) % p.combine_ring_rows
            isa.store_i32(lists.rows + 4 * index, slot)
        rows = RowList(num_nodes, 0, lists.rows, p.back, p.y_row_bytes)
        isa.reduce_rows(p.out_addr + token * p.y_row_bytes, rows)
        for index in range(num_nodes):
            if (isa.load_i32(lists.places + 4 * index) + 1) % p.combine_chunk_rows == 0:
                give_credit(p, isa.load_i32(lists.nodes + 4 * index), channel)
    for other in range(p.num_nodes):
        count = isa.load_i32(lists.cursor + 4 * other)
        if count % p.combine_chunk_rows > 0:
            give_credit(p, other, channel)
        stream = relative(node, other, p.num_nodes) * num_channels + channel
        num_chunks = (count + p.combine_chunk_rows - 1) // p.combine_chunk_rows
        begin = isa.load_i64(p.summed_addr + 8 * stream)
        isa.store_i64(p.summed_addr + 8 * stream, begin + num_chunks * p.combine_chunk_rows)


def give_credit(p: CombineParams, other: int, channel: int) -> None:
    """Tell a stream's reducer that a chunk of its ring may be overwritten: it has been read."""
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    flag = p.back_credit + 8 * theirs
    if other == node:
        # A credit comes after the reads of what it frees, as a signal does by itself.
        isa.fence_release()
        isa.add(p.rank, flag, p.combine_chunk_rows)
    else:
        reducer = other * p.ranks_per_node + p.rank % p.ranks_per_node
        isa.put_signal(reducer, flag, p.combine_chunk_rows, num_channels + channel)
