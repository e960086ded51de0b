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
from kernels.two_hop.params import (
    CombineParams,
    mate_on,
    node_at,
    own_lists,
    relative,
)
from kernels.two_hop.streams import (
    Chunk,
    Served,
    next_chunk,
    num_served,
    open_streams,
)

WAITING, REDUCING, RECEIVING, ENDING = range(6, 10)


def combine(p: CombineParams) -> None:
    """Sum each token's rows inside their nodes, and the nodes' sums at its source."""
    isa.mark(WAITING)
    begin(p)
    if isa.warp_id() < p.channel_warps:
        isa.mark(RECEIVING)
        receive_sums(p, channel_of(p))
    else:
        isa.mark(REDUCING)
        send_sums(p)
    isa.mark(ENDING)
    end(p)


def begin(p: CombineParams) -> None:
    """Tell the node's ranks that this rank's rows may be read, and wait until theirs may."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.combine_epoch + 8 * sm) + 1
    if sm == 0:
        first_rank = p.rank - p.rank % p.ranks_per_node
        isa.fence_release()
        for local in range(warp, p.ranks_per_node, p.num_warps):
            isa.add(first_rank + local, p.ready + 8 * (p.rank % p.ranks_per_node), 1)
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.wait_ge(p.ready + 8 * local, epoch)
    isa.block_sync()


def end(p: CombineParams) -> None:
    """Tell the node's ranks that their rows have been read; end the epoch."""
    sm, warp = isa.sm_id(), isa.warp_id()
    first_rank = p.rank - p.rank % p.ranks_per_node
    isa.block_sync()
    isa.fence_release()
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.add(first_rank + local, p.read, 1)
    if warp == 0:
        epoch = isa.load_i64(p.combine_epoch_addr + 8 * sm) + 1
        isa.store(p.rank, p.combine_epoch + 8 * sm, epoch)
        if sm == 0:
            isa.wait_ge(p.read, epoch * p.ranks_per_node * p.num_sms)


def reducer_streams(p: CombineParams) -> Served:
    """Return the streams of this warp, a reducer."""
    reducer = isa.sm_id() * p.reduce_warps + isa.warp_id() - p.channel_warps
    return Served(
        reducer,
        p.num_reducers,
        num_served(p.num_streams, reducer, p.num_reducers),
        p.wanted_addr + 8 * reducer * p.num_streams_per_warp,
        p.places_addr + 4 * reducer * p.num_streams_per_warp,
        p.expected_addr,
        p.reduced_addr,
        p.combine_chunk_rows - p.combine_ring_rows,
        p.combine_chunk_rows,
    )


def send_sums(p: CombineParams) -> None:
    """Sum the rows of this warp's streams, a chunk at a time, where there is room."""
    num_left = open_streams(reducer_streams(p))
    turn = 0
    while num_left > 0:
        chunk = next_chunk(reducer_streams(p), p.back_credit, turn)
        turn = chunk.which + 1
        num_left -= chunk.is_last
        send_chunk(p, chunk)


def send_chunk(p: CombineParams, chunk: Chunk) -> None:
    """Sum a chunk's rows and send the sums to their source."""
    num_channels = p.num_sms * p.channel_warps
    node = p.rank // p.ranks_per_node
    other, channel = node_of(p, chunk.stream), chunk.stream % num_channels
    theirs = relative(other, node, p.num_nodes) * num_channels + channel
    kept = p.kept_addr + (chunk.stream * p.channel_rows + chunk.place) * p.kept_bytes
    for at in range(chunk.at, chunk.at + chunk.num_rows):
        ranks, slot = kept + 8, at % p.combine_ring_rows
        rows = RowList(isa.load_i32(kept), ranks, ranks + 4 * p.ranks_per_node, p.y, p.y_row_bytes)
        into = p.back + (theirs * p.combine_ring_rows + slot) * p.y_row_bytes
        sums = p.stage_addr + (chunk.stream * p.combine_ring_rows + slot) * p.y_row_bytes
        if is_near(p, chunk.stream):
            sums = p.back_addr + into - p.back
        isa.reduce_rows(sums, rows)
        if not is_near(p, chunk.stream):
            source = mate_on(p.rank, node_of(p, chunk.stream), p.ranks_per_node)
            isa.put_row(source, into, sums, p.y_row_bytes, chunk.stream % num_channels)
        kept += p.kept_bytes
    tail = p.back_tail + 8 * theirs
    if is_near(p, chunk.stream):
        isa.fence_release()
        isa.add(p.rank, tail, p.combine_chunk_rows)
    else:
        source = mate_on(p.rank, node_of(p, chunk.stream), p.ranks_per_node)
        isa.put_signal(source, tail, p.combine_chunk_rows, chunk.stream % num_channels)


def is_near(p: CombineParams, stream: int) -> bool:
    """Return whether a stream is the own node's, which come last."""
    return stream >= (p.num_nodes - 1) * p.num_sms * p.channel_warps


def node_of(p: CombineParams, stream: int) -> int:
    """Return the node that a stream's sums go to."""
    num_channels = p.num_sms * p.channel_warps
    return node_at(p.rank // p.ranks_per_node, stream // num_channels, p.num_nodes)


def receive_sums(p: CombineParams, channel: int) -> None:
    """Sum the nodes' sums of a channel's tokens as they arrive."""
    num_channels = p.num_sms * p.channel_warps
    for other in range(p.num_nodes):
        isa.store_i32(own_lists(p).cursor + 4 * other, 0)
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
        lists = own_lists(p)
        num_nodes = isa.route(topk, lists.cursor, lists.nodes, lists.places)
        receive_token(p, token, num_nodes)
    for other in range(p.num_nodes):
        count = isa.load_i32(own_lists(p).cursor + 4 * other)
        if count % p.combine_chunk_rows > 0:
            give_credit(p, other)
        num_chunks = (count + p.combine_chunk_rows - 1) // p.combine_chunk_rows
        summed = p.summed_addr + 8 * stream_from(p, other)
        isa.store_i64(summed, isa.load_i64(summed) + num_chunks * p.combine_chunk_rows)


def receive_token(p: CombineParams, token: int, num_nodes: int) -> None:
    """Sum the nodes' sums of a token whose nodes and places are in this warp's lists."""
    for index in range(num_nodes):
        lists = own_lists(p)
        other = isa.load_i32(lists.nodes + 4 * index)
        place = isa.load_i32(lists.places + 4 * index)
        stream = stream_from(p, other)
        begun = isa.load_i64(p.summed_addr + 8 * stream)
        chunk = place // p.combine_chunk_rows + 1
        isa.wait_ge(p.back_tail + 8 * stream, begun + chunk * p.combine_chunk_rows)
        slot = stream * p.combine_ring_rows + (begun + place) % p.combine_ring_rows
        isa.store_i32(lists.rows + 4 * index, slot)
    rows = RowList(num_nodes, 0, own_lists(p).rows, p.back, p.y_row_bytes)
    isa.reduce_rows(p.out_addr + token * p.y_row_bytes, rows)
    for index in range(num_nodes):
        lists = own_lists(p)
        if (isa.load_i32(lists.places + 4 * index) + 1) % p.combine_chunk_rows == 0:
            give_credit(p, isa.load_i32(lists.nodes + 4 * index))


def channel_of(p: CombineParams) -> int:
    """Return the channel of this warp, a receiver."""
    return isa.sm_id() * p.channel_warps + isa.warp_id()


def stream_from(p: CombineParams, other: int) -> int:
    """Return the stream of this warp's channel that comes from a node."""
    node = p.rank // p.ranks_per_node
    return relative(node, other, p.num_nodes) * p.num_sms * p.channel_warps + channel_of(p)


def give_credit(p: CombineParams, other: int) -> None:
    """Tell a stream's reducer that a chunk of its ring may be overwritten: it has been read."""
    flag = p.back_credit + 8 * stream_from(p, other)
    if other == p.rank // p.ranks_per_node:
        # A credit comes after the reads of what it frees, as a signal does by itself.
        isa.fence_release()
        isa.add(p.rank, flag, p.combine_chunk_rows)
    else:
        channel = p.num_sms * p.channel_warps + channel_of(p)
        isa.put_signal(
            mate_on(p.rank, other, p.ranks_per_node), flag, p.combine_chunk_rows, channel
        )
