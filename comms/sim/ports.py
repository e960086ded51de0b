"""Links as queues: egress with admission, ingress with finite room, local memory.

An egress port holds at most `limit` bytes, a NIC so many requests, whose data stays in memory; a
transfer that does not fit stalls the warp that issues it, in order. What is admitted waits in a
queue for its destination, and the port serves the destinations in turn. Before a transfer leaves,
its room at the destination's ingress is reserved; a destination without room is passed over until
some is freed, so one that is overrun fills the shared room of its senders and then stalls them:
nothing is ever dropped. Read requests, fetch_adds and signals are small, travel on a channel of
their own and are served first, by the same port. Rows that SMs have stored over NVLink are
acknowledged: that takes time of the ports in the other direction.

Each port carries a meter that knows nothing of the queues and checks the window law at every
completion: bytes in a window <= cap x window + one transfer.
"""

from typing import Any

from comms.compiling import inner
from comms.raw import move, record_at, word_at
from comms.sim.events import push, wake
from comms.sim.state import (
    EV_ARRIVE,
    EV_EGRESS,
    HBM,
    HBM_DONE,
    NIC_IN,
    NIC_OUT,
    NUM_PORTS,
    NVL_IN,
    NVL_OUT,
    POOL_EMPTY,
    QUEUE,
    QUEUE_BYTES,
    READ_DATA,
    cost,
    header,
    port_at,
    transfer_at,
)


@inner
def take_transfer(e: int) -> int:
    """Take a transfer from the pool; record an error where there is none left."""
    h = header(e)
    transfer = h.free_transfer
    if transfer >= 0:
        h.free_transfer = transfer_at(e, transfer).next
        return transfer
    transfer = h.fresh_transfer
    if transfer == h.num_transfers:
        h.error = POOL_EMPTY
        return 0
    h.fresh_transfer = transfer + 1
    return transfer


@inner
def take_slot(e: int, transfer: int) -> None:
    """Give a transfer memory of its own; only those need it whose source may change."""
    h = header(e)
    slot = h.free_slot
    if slot == 0:
        slot = h.payload + h.fresh_slot * h.slot_bytes
        h.fresh_slot += 1
    else:
        h.free_slot = word_at(slot)[0]
    transfer_at(e, transfer).slot = slot


@inner
def give_transfer(e: int, transfer: int) -> None:
    """Return a transfer and its slot to the pools."""
    slot = transfer_at(e, transfer).slot
    if slot != 0:
        word_at(slot)[0] = header(e).free_slot
        header(e).free_slot = slot
        transfer_at(e, transfer).slot = 0
    transfer_at(e, transfer).next = header(e).free_transfer
    header(e).free_transfer = transfer


@inner
def meter(e: int, port: int, time: int, cost_ps: int) -> None:
    """Account a completion of `cost_ps` at `time` and check the window law."""
    p = port_at(e, port)
    level = max(0, p.meter_level - (time - p.meter_at)) + cost_ps
    p.meter_burst = max(p.meter_burst, cost_ps)
    if level > p.meter_burst:
        p.violations += 1
    p.meter_level = level
    p.meter_at = time
    p.busy_ps += cost_ps


@inner
def arrive_at(e: int, port: int, transfer: int, time: int) -> None:
    """Let a transfer arrive at `port` at `time`, after those already on their way there."""
    p = port_at(e, port)
    t = transfer_at(e, transfer)
    t.time, t.next = time, -1
    if p.head < 0:
        p.head = transfer
        push(e, time, EV_ARRIVE, port)
    else:
        transfer_at(e, p.tail).next = transfer
    p.tail = transfer


@inner
def queue_at(e: int, queue: int) -> Any:
    """Return the record of a queue for one destination."""
    return record_at(header(e).queues + queue * QUEUE_BYTES, QUEUE)


@inner
def room_of(port: int, num_bytes: int) -> int:
    """Return what a transfer takes of its egress port's room: its bytes, at a NIC one request."""
    return 1 if port % NUM_PORTS == NIC_OUT else num_bytes


@inner
def enqueue(e: int, port: int, transfer: int) -> None:
    """Append an admitted transfer to its destination's queue; local memory is the own rank's."""
    p = port_at(e, port)
    t = transfer_at(e, transfer)
    t.room = room_of(port, t.bytes)
    p.queued += t.room
    t.next = -1
    world_size = header(e).world_size
    side = 1 if port % NUM_PORTS == NIC_OUT else 0
    queue = (2 * (port // NUM_PORTS) + side) * world_size + t.dst_rank
    q = queue_at(e, queue)
    if q.head >= 0:
        transfer_at(e, q.tail).next = transfer
    else:
        q.head = transfer
        q.port = port
        make_ready(e, queue)
    q.tail = transfer


@inner
def make_ready(e: int, queue: int) -> None:
    """Append a queue to those that its port may serve."""
    q = queue_at(e, queue)
    p = port_at(e, q.port)
    q.next = -1
    if p.ready_head < 0:
        p.ready_head = queue
    else:
        queue_at(e, p.ready_tail).next = queue
    p.ready_tail = queue


@inner
def make_waiting(e: int, queue: int, ingress: int) -> None:
    """Append a queue to those that wait for room at an ingress port."""
    into = port_at(e, ingress)
    queue_at(e, queue).next = -1
    if into.waiting_head < 0:
        into.waiting_head = queue
    else:
        queue_at(e, into.waiting_tail).next = queue
    into.waiting_tail = queue


@inner
def ingress_of(port: int, dst_rank: int) -> int:
    """Return the port by which what leaves `port` enters `dst_rank`."""
    return dst_rank * NUM_PORTS + (NIC_IN if port % NUM_PORTS == NIC_OUT else NVL_IN)


@inner
def serve(e: int, port: int) -> None:
    """Let an idle egress port send its next transfer, if one can leave."""
    p = port_at(e, port)
    if p.request_head >= 0:
        transfer = p.request_head
        p.request_head = transfer_at(e, transfer).next
        leave(e, port, transfer)
        return
    while p.ready_head >= 0:
        queue = p.ready_head
        q = queue_at(e, queue)
        p.ready_head = q.next
        transfer = q.head
        t = transfer_at(e, transfer)
        if port % NUM_PORTS != HBM:
            ingress = ingress_of(port, t.dst_rank)
            into = port_at(e, ingress)
            if into.queued > 0 and into.queued + t.bytes > into.limit:
                make_waiting(e, queue, ingress)
                continue
        q.head = t.next
        if q.head >= 0:
            make_ready(e, queue)
        leave(e, port, transfer)
        return


@inner
def leave(e: int, port: int, transfer: int) -> None:
    """Send a transfer: occupy the port for its bytes and reserve its arrival."""
    h = header(e)
    p = port_at(e, port)
    t = transfer_at(e, transfer)
    # Acknowledgements that the port has taken on go first.
    begin = max(h.now, p.free_at)
    duration = cost(t.bytes, p.mbps)
    if t.kind == READ_DATA and port % NUM_PORTS != HBM:
        move(t.slot, t.source, t.num_bytes)
    if port % NUM_PORTS == HBM:
        arrive_at(e, port - HBM + HBM_DONE, transfer, begin + duration + p.latency)
    else:
        if port % NUM_PORTS == NIC_OUT:
            duration = max(duration, h.nic_message)
        ingress = ingress_of(port, t.dst_rank)
        into = port_at(e, ingress)
        into.queued += t.bytes
        last = max(begin + p.latency, into.free_at) + cost(t.bytes, into.mbps)
        arrival = max(last, begin + duration + p.latency)
        into.free_at = arrival
        arrive_at(e, ingress, transfer, arrival)
    t.left, t.served = h.now, begin + duration - h.now
    p.busy = 1
    p.service_bytes = t.room
    p.total_bytes += t.bytes
    p.free_at = begin + duration
    meter(e, port, p.free_at, cost(t.bytes, p.mbps))
    push(e, p.free_at, EV_EGRESS, port)


@inner
def acknowledge_row(e: int, src_rank: int, dst_rank: int, num_bytes: int) -> None:
    """Send back what acknowledges a row that has come by NVLink.

    It takes time of the receiver's egress and of the sender's ingress, before whatever has not
    begun there, and needs no room: a flit for each packet, on a channel of its own. Ports count the
    bytes of rows and words, not these.
    """
    h = header(e)
    answer = (num_bytes + h.packet_bytes - 1) // h.packet_bytes * h.ack_bytes
    out = port_at(e, dst_rank * NUM_PORTS + NVL_OUT)
    out.free_at = max(out.free_at, h.now) + cost(answer, out.mbps)
    meter(e, dst_rank * NUM_PORTS + NVL_OUT, out.free_at, cost(answer, out.mbps))
    into = port_at(e, src_rank * NUM_PORTS + NVL_IN)
    into.free_at = max(into.free_at, h.now) + cost(answer, into.mbps)


@inner
def finish_service(e: int, port: int) -> None:
    """End a service: admit who fits into the freed room, serve the next."""
    p = port_at(e, port)
    p.queued -= p.service_bytes
    p.busy = 0
    while p.stalled_head >= 0:
        transfer = p.stalled_head
        t = transfer_at(e, transfer)
        if p.queued > 0 and p.queued + room_of(port, t.bytes) > p.limit:
            break
        p.stalled_head = t.next
        wake(e, t.warp, header(e).now)
        enqueue(e, port, transfer)
    serve(e, port)


@inner
def free_ingress(e: int, port: int, num_bytes: int) -> None:
    """Free room at an ingress port and let the queues that waited for it be served, in order."""
    into = port_at(e, port)
    into.queued -= num_bytes
    into.total_bytes += num_bytes
    promised = into.queued
    while into.waiting_head >= 0:
        queue = into.waiting_head
        q = queue_at(e, queue)
        wanted = transfer_at(e, q.head).bytes
        if promised > 0 and promised + wanted > into.limit:
            return
        promised += wanted
        into.waiting_head = q.next
        make_ready(e, queue)
        if port_at(e, q.port).busy == 0:
            serve(e, q.port)


@inner
def request(e: int, port: int, transfer: int) -> None:
    """Send a read request, a fetch_add or a signal by an egress port; it takes no room there."""
    p = port_at(e, port)
    t = transfer_at(e, transfer)
    t.next, t.room = -1, 0
    if p.request_head < 0:
        p.request_head = transfer
    else:
        transfer_at(e, p.request_tail).next = transfer
    p.request_tail = transfer
    if p.busy == 0:
        serve(e, port)


@inner
def reply(e: int, port: int, transfer: int) -> None:
    """Put what a read request asked for into an egress queue; no warp waits to issue it."""
    enqueue(e, port, transfer)
    if port_at(e, port).busy == 0:
        serve(e, port)


@inner
def post(e: int, port: int, transfer: int) -> bool:
    """Put a transfer into an egress queue; return False where its warp must stall first."""
    p = port_at(e, port)
    t = transfer_at(e, transfer)
    room = room_of(port, t.bytes)
    if p.stalled_head < 0 and (p.queued == 0 or p.queued + room <= p.limit):
        enqueue(e, port, transfer)
        if p.busy == 0:
            serve(e, port)
        return True
    t.next = -1
    if p.stalled_head < 0:
        p.stalled_head = transfer
    else:
        transfer_at(e, p.stalled_tail).next = transfer
    p.stalled_tail = transfer
    return False
