"""Instructions that move bytes, on the fiber of the warp that issues them.

A row passes through the SM first: an issue time, one load latency for every `bytes_in_flight` of
it, and the SM's copy rate, which its warps share. Then it enters a queue. Remote addresses are
(rank, offset in the window) and checked against the window's regions.
"""

from typing import NamedTuple

from comms.compiling import inner
from comms.raw import move, record_at, word_at
from comms.sim.deliver import change_word, channel_at, covered_at
from comms.sim.ports import arrive_at, post, request, take_slot, take_transfer
from comms.sim.record import COPY_PIPE, Passage, record_pass, record_wait
from comms.sim.state import (
    ADMIT,
    BAD_CHANNEL,
    BAD_RANK,
    FETCH_ADD,
    HBM,
    L2,
    NIC_OUT,
    NOT_REACHABLE,
    NUM_PORTS,
    NVL_OUT,
    OUT_OF_BOUNDS,
    POOL_EMPTY,
    PUT,
    PUTS,
    READ_DATA,
    READ_REQUEST,
    READS,
    REGION,
    REGION_BYTES,
    REPLY,
    ROW,
    ROW_LATE,
    SEEN,
    SIGNAL,
    TOO_LONG,
    TOPK,
    block_at,
    cost,
    group_at,
    header,
    rank_at,
    region_at,
    transfer_at,
    warp_at,
)
from comms.sim.warps import fail, owe, pay, sleep_until, suspend


@inner
def check_window(e: int, warp: int, rank: int, offset: int, num_bytes: int) -> None:
    """Stop the engine unless the bytes lie in one region of a rank's window."""
    if rank < 0 or rank >= header(e).world_size:
        fail(e, warp, BAD_RANK, rank, offset)
    region = region_at(e, offset)
    if region < 0:
        fail(e, warp, OUT_OF_BOUNDS, rank, offset)
    r = record_at(header(e).regions + region * REGION_BYTES, REGION)
    if offset + num_bytes > r.offset + r.num_bytes or num_bytes < 0:
        fail(e, warp, OUT_OF_BOUNDS, rank, offset + num_bytes)


@inner
def check_slot(e: int, warp: int, num_bytes: int) -> None:
    """Stop the engine unless one transfer can hold the bytes."""
    if num_bytes < 0 or num_bytes > header(e).slot_bytes:
        fail(e, warp, TOO_LONG, num_bytes, header(e).slot_bytes)


@inner
def port_to(e: int, warp: int, rank: int) -> int:
    """Return the port by which loads and stores of a warp leave for `rank`."""
    own = warp_at(e, warp).rank
    if rank == own:
        return HBM
    if rank < 0 or rank >= header(e).world_size:
        fail(e, warp, BAD_RANK, rank, 0)
    if rank // header(e).ranks_per_node != own // header(e).ranks_per_node:
        fail(e, warp, NOT_REACHABLE, rank, 0)
    return NVL_OUT


@inner
def new_transfer(e: int, warp: int, kind: int, rank: int, offset: int, num_bytes: int) -> int:
    """Return a transfer of `num_bytes` from this warp to (rank, offset)."""
    check_window(e, warp, rank, offset, num_bytes)
    transfer = take_transfer(e)
    if header(e).error != 0:
        fail(e, warp, POOL_EMPTY, 0, 0)
    t = transfer_at(e, transfer)
    w = warp_at(e, warp)
    t.kind, t.src_rank, t.dst_rank, t.offset = kind, w.rank, rank, offset
    t.num_bytes, t.bytes, t.warp, t.value = num_bytes, num_bytes, warp, 0
    t.issued = header(e).now + w.debt
    return transfer


@inner
def stamp(e: int, warp: int, transfer: int) -> None:
    """Note the barriers that a write comes after, by which it is known whom its releases cover."""
    t, w = transfer_at(e, transfer), warp_at(e, warp)
    t.generation = block_at(e, w.block).generation
    t.group_generation = 0 if w.group < 0 else group_at(e, w.group).generation


@inner
def issue(e: int, warp: int, transfer: int, kind: int) -> None:
    """Post a write at the warp's port `kind`; stall where the queue is full."""
    w = warp_at(e, warp)
    t = transfer_at(e, transfer)
    t.port = kind
    stamp(e, warp, transfer)
    if t.kind in (ROW, ROW_LATE, TOPK):
        w.unreleased |= 1 << (t.dst_rank & 63)
    w.outstanding += 1
    rank_at(e, w.rank).outstanding += 1
    if not post(e, w.rank * NUM_PORTS + kind, transfer):
        w.state = ADMIT
        suspend(e, warp)


@inner
def through_sm(e: int, warp: int, num_bytes: int, bulk: int) -> int:
    """Reserve the SM's copy pipe for `num_bytes`; return when they have passed it."""
    h = header(e)
    w = warp_at(e, warp)
    b = block_at(e, w.block)
    now = h.now + w.debt
    w.debt = 0
    if bulk:
        flight, mbps, fixed, load = h.bulk_flight, h.bulk_copy_mbps, h.bulk_issue, h.bulk_load
    else:
        flight, mbps, fixed, load = h.ldst_flight, h.ldst_copy_mbps, h.ldst_issue, h.ldst_load
    busy = cost(num_bytes, mbps)
    b.copy_free = max(b.copy_free, now) + busy
    h.rows += 1
    passed = max(b.copy_free, now + fixed + (num_bytes + flight - 1) // flight * load)
    if h.records != 0:
        passage = Passage(now, passed, busy, b.copy_free, num_bytes)
        record_pass(e, warp, COPY_PIPE, passage)
    return passed


@inner
def copy(
    e: int, warp: int, rank: int, offset: int, source: int, num_bytes: int, wire: int, bulk: int
) -> None:
    """Copy `num_bytes` of local memory to (rank, offset), charged as `wire` bytes.

    The source is read now, or on arrival where the copy is `bulk`.
    """
    port = port_to(e, warp, rank)
    transfer = new_transfer(e, warp, ROW_LATE if bulk else ROW, rank, offset, num_bytes)
    t = transfer_at(e, transfer)
    t.source = source
    if not bulk:
        check_slot(e, warp, num_bytes)
        take_slot(e, transfer)
        move(t.slot, source, num_bytes)
    t.bytes = 2 * wire if port == HBM else wire
    sleep_until(e, warp, through_sm(e, warp, wire, bulk))
    issue(e, warp, transfer, port)


class Path(NamedTuple):
    """The way of a put: the rank whose NIC sends it, the destination, the sender's channel."""

    via: int
    rank: int
    channel: int


class Span(NamedTuple):
    """Local memory: its address, its bytes, and the bytes it is charged as."""

    address: int
    num_bytes: int
    wire_bytes: int


@inner
def new_put(e: int, warp: int, path: Path, offset: int, span: Span) -> int:
    """Return a transfer of memory of `path.via` to (path.rank, offset) on another node."""
    transfer = new_transfer(e, warp, PUT, path.rank, offset, span.num_bytes)
    t = transfer_at(e, transfer)
    t.source, t.bytes, t.key = span.address, span.wire_bytes, channel_key(e, warp, path)
    t.src_rank, t.port = path.via, NIC_OUT
    return transfer


@inner
def give_to_nic(e: int, warp: int, transfer: int) -> None:
    """Queue a write that has been posted, or the next part of one; it is read on arrival."""
    t = transfer_at(e, transfer)
    channel_at(e, t.key).posted += 1
    if not post(e, t.src_rank * NUM_PORTS + NIC_OUT, transfer):
        warp_at(e, warp).state = ADMIT
        suspend(e, warp)


@inner
def put(e: int, warp: int, path: Path, offset: int, span: Span) -> None:
    """Write memory of `path.via` to (path.rank, offset) on another node; it is read on arrival."""
    transfer = new_put(e, warp, path, offset, span)
    pay(e, warp, header(e).nic_post)
    give_to_nic(e, warp, transfer)


@inner
def put_signal(e: int, warp: int, path: Path, offset: int, value: int) -> None:
    """Add `value` to a flag on another node once the path's earlier puts have arrived.

    A signal overtakes what the port has queued, and waits at its end for the puts of its path.
    """
    transfer = new_transfer(e, warp, SIGNAL, path.rank, offset, 8)
    t = transfer_at(e, transfer)
    t.value, t.key, t.port, t.src_rank = value, channel_key(e, warp, path), NIC_OUT, path.via
    t.bytes = header(e).word_bytes
    pay(e, warp, header(e).nic_post)
    t.after = channel_at(e, t.key).posted
    request(e, path.via * NUM_PORTS + NIC_OUT, transfer)


@inner
def put_wait(e: int, warp: int, channel: int) -> None:
    """Wait until the own NIC has been told that every put of a channel has arrived."""
    h = header(e)
    own = warp_at(e, warp).rank
    if channel < 0 or channel >= h.num_channels:
        fail(e, warp, BAD_CHANNEL, channel, h.num_channels)
    pay(e, warp, 0)
    told = h.now
    for rank in range(h.world_size):
        if rank // h.ranks_per_node == own // h.ranks_per_node:
            continue
        c = channel_at(e, (own * h.world_size + rank) * h.num_channels + channel)
        while c.arrived < c.posted:
            w = warp_at(e, warp)
            w.state, w.next, c.waiter = PUTS, c.waiter, warp + 1
            suspend(e, warp)
        told = max(told, c.arrived_at + h.nic_latency)
    told = max(told, h.now + h.poll)
    if h.records != 0:
        record_wait(e, warp, PUTS, h.now, told)
    sleep_until(e, warp, told)


@inner
def channel_key(e: int, warp: int, path: Path) -> int:
    """Return the index of a path's channel; stop the engine where no NIC leads there."""
    h = header(e)
    per_node = h.ranks_per_node
    own = warp_at(e, warp).rank
    if path.via < 0 or path.via >= h.world_size or path.via // per_node != own // per_node:
        fail(e, warp, NOT_REACHABLE, path.via, 0)
    same_node = path.rank // per_node == path.via // per_node
    if same_node or (h.rails and path.rank % per_node != path.via % per_node):
        fail(e, warp, NOT_REACHABLE, path.rank, 0)
    if path.channel < 0 or path.channel >= h.num_channels:
        fail(e, warp, BAD_CHANNEL, path.channel, h.num_channels)
    return (path.via * h.world_size + path.rank) * h.num_channels + path.channel


@inner
def write_word(e: int, warp: int, rank: int, offset: int, value: int, kind: int) -> None:
    """Store or add a word at (rank, offset), relaxed.

    Where rows to another rank are under way that a release should have covered, the word is seen at
    once: of the orders that hardware may take, the one that shows the mistake. It takes its way all
    the same.
    """
    port = port_to(e, warp, rank)
    pay(e, warp, 0)
    transfer = new_transfer(e, warp, kind, rank, offset, 8)
    t = transfer_at(e, transfer)
    t.value = value
    w = warp_at(e, warp)
    b = block_at(e, w.block)
    owe(e, warp, header(e).word_issue)
    if covered_at(e, warp) >= 0:
        w.unreleased = 0
    if port == NVL_OUT and w.unreleased & (1 << (rank & 63)):
        change_word(e, transfer)
        t.kind = SEEN
    if port == NVL_OUT:
        t.bytes = header(e).word_bytes
        issue(e, warp, transfer, NVL_OUT)
        return
    t.port = L2
    stamp(e, warp, transfer)
    w.outstanding += 1
    rank_at(e, w.rank).outstanding += 1
    b.words_at = header(e).now + header(e).l2
    arrive_at(e, rank * NUM_PORTS + L2, transfer, b.words_at)


@inner
def fetch_add(e: int, warp: int, rank: int, offset: int, value: int) -> int:
    """Add to the word at (rank, offset) and return what it was."""
    port = port_to(e, warp, rank)
    transfer = new_transfer(e, warp, FETCH_ADD, rank, offset, 8)
    t = transfer_at(e, transfer)
    t.value = value
    w = warp_at(e, warp)
    pay(e, warp, header(e).word_issue)
    if port == NVL_OUT:
        t.port, t.bytes = NVL_OUT, header(e).word_bytes
        request(e, w.rank * NUM_PORTS + NVL_OUT, transfer)
    else:
        t.port = L2
        arrive_at(e, rank * NUM_PORTS + L2, transfer, header(e).now + header(e).l2)
    w.state = REPLY
    suspend(e, warp)
    return w.reply


@inner
def request_row(e: int, warp: int, rank: int, offset: int, num_bytes: int, wire: int) -> int:
    """Start to read a row or a part of one at (rank, offset), charged as `wire` bytes.

    Returns the transfer whose slot will hold it.
    """
    h = header(e)
    port = port_to(e, warp, rank)
    check_slot(e, warp, num_bytes)
    kind = READ_DATA if port == HBM else READ_REQUEST
    transfer = new_transfer(e, warp, kind, rank, offset, num_bytes)
    t = transfer_at(e, transfer)
    w = warp_at(e, warp)
    t.port = port
    take_slot(e, transfer)
    t.bytes = t.value = wire
    if port == HBM:
        t.source = rank_at(e, rank).base + offset
    else:
        t.bytes = (t.bytes + h.request_span - 1) // h.request_span * h.request_bytes
    w.pending_reads += 1
    if port == NVL_OUT:
        request(e, w.rank * NUM_PORTS + port, transfer)
    elif not post(e, w.rank * NUM_PORTS + port, transfer):
        w.state = ADMIT
        suspend(e, warp)
    return transfer


@inner
def await_rows(e: int, warp: int) -> None:
    """Wait until every row that this warp has requested is here."""
    w = warp_at(e, warp)
    if w.pending_reads > 0:
        w.state = READS
        suspend(e, warp)


@inner
def load(e: int, warp: int, offset: int) -> int:
    """Load a word of the own window, relaxed.

    A block sees the words that it has stored here itself; a loop of loads lets others run.
    """
    w = warp_at(e, warp)
    check_window(e, warp, w.rank, offset, 8)
    if block_at(e, w.block).words_at >= header(e).now or w.debt > header(e).poll:
        pay(e, warp, header(e).l2)
    else:
        owe(e, warp, header(e).l2)
    return word_at(rank_at(e, w.rank).base + offset)[0]


@inner
def min_words(e: int, warp: int, offset: int, stride: int, count: int) -> int:
    """Load words of the own window, lane by lane, and return the least; others may run before."""
    check_window(e, warp, warp_at(e, warp).rank, offset, (count - 1) * stride + 8)
    pay(e, warp, header(e).l2 + (count + 31) // 32 * header(e).word_issue)
    base = rank_at(e, warp_at(e, warp).rank).base + offset
    least = word_at(base)[0]
    for index in range(1, count):
        least = min(least, word_at(base + index * stride)[0])
    return least


@inner
def load_acquire(e: int, warp: int, offset: int) -> int:
    """Load a word of the own window; others may run before it returns."""
    check_window(e, warp, warp_at(e, warp).rank, offset, 8)
    pay(e, warp, header(e).l2)
    return word_at(rank_at(e, warp_at(e, warp).rank).base + offset)[0]
