"""All-to-all-v in the manner of NCCL's grouped send/receive: channels on SMs, chunks through FIFO
slots. All-to-all and all-gather are the same with other messages: of equal splits, and with
`to_all` the same rows for every peer.

Grid: `num_sms` channels; in each the first half of the warps send and the second half receive.
Stream s = channel * pairs + pair joins one sending and one receiving warp. Peers at distance delta
= s, s + S, ... (S streams; where there are more streams than ranks several share a peer's message
in even parts) are served at once by different streams, one after another by the same.

A FIFO at the receiver, of `num_slots` slots for each (source, stream), takes chunks of whole rows.
The sender acquires a credit (`head[peer][s]`, own rank) for the slot, writes the chunk, and adds 1
to `tail[rank][s]` of the peer (release). The receiver acquires `tail`, copies the chunk to its
final place and adds 1 to `head[rank][s]` of the sender (release). To another node a chunk is first
copied to `net_fifo` of the rank whose NIC sends it, the own one, or the peer's rail where rails are
separate (PXN, over NVLink), and put into the peer's FIFO from there. The last add of a message
makes up 2^32, so each exchange starts at exchange * 2^32 whatever its sizes were; a sender that
finds `head` there knows that its slots are drained.

It cannot deadlock: every warp goes through its distances in the same order, a message's sender
waits only for its receiver's credits and a receiver only for its sender's chunks. The message of
least distance that is not finished has both its warps at work on it. Blocks must be resident
together.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import is_same_node, share_begin, via_rank
from kernels.isa import Target

EXCHANGE = 1 << 32


class AlltoallvParams(NamedTuple):
    """Parameters of `alltoallv`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    ranks_per_node: int
    rails: int
    num_sms: int
    num_warps: int
    base_ns: int
    step_ns: int
    chunk_bytes: int
    x_row_full_bytes: int
    y_row_full_bytes: int
    x_row_bytes: int
    y_row_bytes: int
    ids_bytes: int
    to_all: int
    num_slots: int
    slot_bytes: int
    ids_chunk_bytes: int
    send_begins_addr: int
    recv_begins_addr: int
    send_x_addr: int
    send_idx_addr: int
    send_topk_weights_addr: int
    into_x: int
    into_idx: int
    into_weights: int
    from_y_addr: int
    into_y: int
    exchange_epoch: int
    fifo: int
    fifo_addr: int
    net_fifo: int
    head: int
    tail: int


class Message(NamedTuple):
    """What one exchange moves: buffers, the rows' places by rank, the rows and bytes of a chunk.

    Where `to_all` every peer gets the rows from the buffer's start, as many as its places tell.
    """

    from_addr: int
    into: int
    send_begins_addr: int
    recv_begins_addr: int
    row_bytes: int
    chunk_rows: int
    full_bytes: int
    is_row: int
    to_all: int
    exchange: int


def alltoallv_dispatch(p: AlltoallvParams) -> None:
    """Exchange the packed rows, their ids and their weights."""
    sm = isa.sm_id()
    begun = isa.load(p.exchange_epoch + 8 * sm)
    isa.pause(p.base_ns)
    begins = p.send_begins_addr
    ends = p.recv_begins_addr
    rows = max(p.chunk_bytes // p.x_row_full_bytes, 1)
    x, x_bytes = p.send_x_addr, p.x_row_bytes
    full, same = rows * x_bytes, p.to_all
    exchange(p, Message(x, p.into_x, begins, ends, x_bytes, rows, full, 1, same, begun))
    rows = p.ids_chunk_bytes // p.ids_bytes
    idx, weights, full = p.send_idx_addr, p.send_topk_weights_addr, p.chunk_bytes
    ids = p.ids_bytes
    exchange(p, Message(idx, p.into_idx, begins, ends, ids, rows, full, 0, same, begun + 1))
    into = p.into_weights
    exchange(p, Message(weights, into, begins, ends, ids, rows, full, 0, same, begun + 2))
    isa.block_sync()
    if isa.warp_id() == 0:
        isa.store(p.rank, p.exchange_epoch + 8 * sm, begun + 3)


def alltoallv_combine(p: AlltoallvParams) -> None:
    """Exchange the rows that go back."""
    sm = isa.sm_id()
    begun = isa.load(p.exchange_epoch + 8 * sm)
    isa.pause(p.base_ns)
    rows = max(p.chunk_bytes // p.y_row_full_bytes, 1)
    begins, ends = p.recv_begins_addr, p.send_begins_addr
    y, y_bytes = p.from_y_addr, p.y_row_bytes
    full = rows * y_bytes
    exchange(p, Message(y, p.into_y, begins, ends, y_bytes, rows, full, 1, 0, begun))
    isa.block_sync()
    if isa.warp_id() == 0:
        isa.store(p.rank, p.exchange_epoch + 8 * sm, begun + 1)


def exchange(p: AlltoallvParams, message: Message) -> None:
    """Send and receive this warp's parts of a message between every two ranks."""
    num_pairs = p.num_warps // 2
    warp = isa.warp_id()
    stream = isa.sm_id() * num_pairs + warp % num_pairs
    num_streams = p.num_sms * num_pairs
    part = stream // p.world_size
    for delta in range(stream % p.world_size, p.world_size, num_streams):
        num_parts = max((num_streams - delta + p.world_size - 1) // p.world_size, 1)
        if warp < num_pairs:
            peer = (p.rank + delta) % p.world_size
            begin = isa.load_i32(message.send_begins_addr + 4 * peer)
            total = isa.load_i32(message.send_begins_addr + 4 * peer + 4) - begin
            first = share_begin(total, part, num_parts)
            count = share_begin(total, part + 1, num_parts) - first
            if message.to_all:
                begin = 0
            send(p, message, peer, stream, begin + first, count)
        else:
            peer = (p.rank - delta) % p.world_size
            begin = isa.load_i32(message.recv_begins_addr + 4 * peer)
            total = isa.load_i32(message.recv_begins_addr + 4 * peer + 4) - begin
            first = share_begin(total, part, num_parts)
            count = share_begin(total, part + 1, num_parts) - first
            receive(p, message, peer, stream, begin + first, count)


def send(
    p: AlltoallvParams, message: Message, peer: int, stream: int, first: int, count: int
) -> None:
    """Send rows of one message chunk by chunk, as credits come."""
    num_streams = p.num_sms * (p.num_warps // 2)
    local = is_same_node(p.rank, peer, p.ranks_per_node)
    via = via_rank(p.rank, peer, p.ranks_per_node, p.rails)
    channel = p.rank % p.ranks_per_node * num_streams + stream
    slots = (p.rank * num_streams + stream) * p.num_slots
    credits = p.head + 8 * (peer * num_streams + stream)
    flag = p.tail + 8 * (p.rank * num_streams + stream)
    num_steps = max((count + message.chunk_rows - 1) // message.chunk_rows, 1)
    for step in range(num_steps):
        isa.wait_ge(credits, message.exchange * EXCHANGE + max(step - p.num_slots + 1, 0))
        rows = min(message.chunk_rows, count - step * message.chunk_rows)
        num_bytes = max(rows, 0) * message.row_bytes
        source = message.from_addr + (first + step * message.chunk_rows) * message.row_bytes
        slot = p.fifo + (slots + step % p.num_slots) * p.slot_bytes
        value = 1 if step < num_steps - 1 else EXCHANGE - step
        if local:
            write_chunk(message, Target(peer, slot), source, num_bytes)
            isa.pause(p.step_ns * num_bytes // message.full_bytes)
            isa.fence_release()
            isa.add(peer, flag, value)
        else:
            stage = p.net_fifo + (channel * p.num_slots + step % p.num_slots) * p.slot_bytes
            write_chunk(message, Target(via, stage), source, num_bytes)
            isa.pause(p.step_ns * num_bytes // message.full_bytes)
            isa.fence_release()
            if num_bytes > 0:
                if message.is_row:
                    isa.put_row_via(via, stage, Target(peer, slot), num_bytes, channel)
                else:
                    isa.put_bytes_via(via, stage, Target(peer, slot), num_bytes, channel)
            isa.put_signal_via(via, Target(peer, flag), value, channel)
    if num_streams < p.world_size and not local:
        # The next message of this stream reuses `net_fifo`: this one's puts must have been read.
        isa.wait_ge(credits, (message.exchange + 1) * EXCHANGE)


def receive(
    p: AlltoallvParams, message: Message, peer: int, stream: int, first: int, count: int
) -> None:
    """Receive rows of one message into their final places and give credits back."""
    num_streams = p.num_sms * (p.num_warps // 2)
    slots = (peer * num_streams + stream) * p.num_slots
    chunks = p.tail + 8 * (peer * num_streams + stream)
    flag = p.head + 8 * (p.rank * num_streams + stream)
    num_steps = max((count + message.chunk_rows - 1) // message.chunk_rows, 1)
    for step in range(num_steps):
        isa.wait_ge(chunks, message.exchange * EXCHANGE + step + 1)
        rows = min(message.chunk_rows, count - step * message.chunk_rows)
        num_bytes = max(rows, 0) * message.row_bytes
        into = message.into + (first + step * message.chunk_rows) * message.row_bytes
        slot = p.fifo_addr + (slots + step % p.num_slots) * p.slot_bytes
        write_chunk(message, Target(p.rank, into), slot, num_bytes)
        value = 1 if step < num_steps - 1 else EXCHANGE - step
        isa.fence_release()
        if is_same_node(p.rank, peer, p.ranks_per_node):
            isa.add(peer, flag, value)
        else:
            via = via_rank(p.rank, peer, p.ranks_per_node, p.rails)
            # Credits cover no puts; they have channels of their own, which no put uses.
            channel = (p.ranks_per_node + p.rank % p.ranks_per_node) * num_streams + stream
            isa.put_signal_via(via, Target(peer, flag), value, channel)


def write_chunk(message: Message, target: Target, source: int, num_bytes: int) -> None:
    """Copy a chunk to a rank of this node."""
    if num_bytes == 0:
        return
    if message.is_row:
        isa.copy_row(target.rank, target.offset, source, num_bytes)
    else:
        isa.copy_bytes(target.rank, target.offset, source, num_bytes)
