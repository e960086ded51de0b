"""The simulator's ports, SMs and flags as a SimPy program: times only, no data.

It stands beside the virtual-time engine to check its times and to have a speed to compare with.
Ports are callbacks on timeouts, so that only warps are processes. Rules and units are those of
`comms.sim`: picoseconds, MB/s, costs rounded up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.fabric import Fabric

if TYPE_CHECKING:
    from simpy import Environment, Event

Steps = Generator["Event", object, None]
PS_PER_NS = 1000


def cost(num_bytes: int, mbps: int) -> int:
    """Return the picoseconds that `num_bytes` take at `mbps`, rounded up."""
    return (num_bytes * 1_000_000 + mbps - 1) // mbps


@dataclass(frozen=True, slots=True)
class Costs:
    """What the model charges, in picoseconds, MB/s and bytes; `ldst` is the mechanism."""

    copy_mbps: int
    flight_bytes: int
    issue: int
    load: int
    word_issue: int
    l2: int
    poll: int
    sync: int
    fence: int
    layout: int
    reduce_mbps: int
    hbm_mbps: int
    link_mbps: int
    link_latency: int
    link_bytes: int
    request_bytes: int
    request_span: int
    word_bytes: int

    @classmethod
    def of(cls, fabric: Fabric) -> Costs:
        """Return the costs of a fabric."""
        sm, link = fabric.sm, fabric.nvlink
        return cls(
            copy_mbps=round(fabric.copy_gbs("ldst") * 1000),
            flight_bytes=int(sm.ldst.bytes_in_flight.value),
            issue=round(sm.ldst.issue_ns.value * PS_PER_NS),
            load=round(sm.ldst.load_ns.value * PS_PER_NS),
            word_issue=round(sm.word_issue_ns.value * PS_PER_NS),
            l2=round(sm.l2_ns.value * PS_PER_NS),
            poll=round(sm.poll_ns.value * PS_PER_NS),
            sync=round(sm.block_sync_ns.value * PS_PER_NS),
            fence=round(sm.fence_ns.value * PS_PER_NS),
            layout=round(sm.layout_ns_per_token.value * PS_PER_NS),
            reduce_mbps=round(sm.reduce_gbs.value * 1000),
            hbm_mbps=round(fabric.hbm_gbs.value * 1000),
            link_mbps=round(link.payload_gbs.value * 1000),
            link_latency=round(link.latency_ns.value * PS_PER_NS),
            link_bytes=int(link.queue_bytes.value),
            request_bytes=int(sm.read_request_bytes.value),
            request_span=int(sm.read_request_span_bytes.value),
            word_bytes=int(sm.word_bytes.value),
        )


class Transfer:
    """Bytes on their way to a rank, and what to do when they are there."""

    __slots__ = ("admitted", "arrived", "dst", "generation", "num_bytes", "warp")

    def __init__(
        self, warp: Warp, dst: int, num_bytes: int, arrived: Callable[[Transfer], None]
    ) -> None:
        self.warp = warp
        self.dst = dst
        self.num_bytes = num_bytes
        self.arrived = arrived
        self.generation = warp.block.generation
        self.admitted: Event | None = None


class Ingress:
    """Where bytes enter a rank: room is reserved when they leave their source."""

    __slots__ = ("free_at", "limit", "mbps", "num_bytes", "waiting")

    def __init__(self, mbps: int, limit: int) -> None:
        self.mbps = mbps
        self.limit = limit
        self.num_bytes = 0
        self.free_at = 0
        self.waiting: deque[tuple[Egress, deque[Transfer]]] = deque()

    def arrive(self, event: Event) -> None:
        """Hand a transfer over and let the queues that waited for its room go on."""
        transfer: Transfer = event.value
        transfer.arrived(transfer)
        self.num_bytes -= transfer.num_bytes
        promised = self.num_bytes
        while self.waiting:
            egress, queue = self.waiting[0]
            wanted = queue[0].num_bytes
            if promised > 0 and promised + wanted > self.limit:
                return
            promised += wanted
            self.waiting.popleft()
            egress.ready.append(queue)
            if not egress.busy:
                egress.serve()


class Egress:
    """Where bytes leave a rank: one shared room, a queue for each destination, served in turn.

    Without `ingresses` it is local memory: one queue, and nothing to reserve at its end.
    """

    def __init__(self, env: Environment, mbps: int, latency: int, limit: int) -> None:
        self.env = env
        self.mbps = mbps
        self.latency = latency
        self.limit = limit
        self.num_bytes = 0
        self.busy = False
        self.ingresses: list[Ingress] = []
        self.queues: dict[int, deque[Transfer]] = {}
        self.ready: deque[deque[Transfer]] = deque()
        self.stalled: deque[Transfer] = deque()
        self.requests: deque[Transfer] = deque()

    def post(self, transfer: Transfer) -> Event | None:
        """Queue a transfer; return what its warp must wait for where there is no room."""
        num_bytes = self.num_bytes
        if not self.stalled and (num_bytes == 0 or num_bytes + transfer.num_bytes <= self.limit):
            self.enqueue(transfer)
            return None
        transfer.admitted = self.env.event()
        self.stalled.append(transfer)
        return transfer.admitted

    def enqueue(self, transfer: Transfer) -> None:
        """Queue a transfer that is admitted."""
        self.num_bytes += transfer.num_bytes
        queue = self.queues.get(transfer.dst)
        if queue is None:
            queue = self.queues[transfer.dst] = deque()
        if not queue:
            self.ready.append(queue)
        queue.append(transfer)
        if not self.busy:
            self.serve()

    def request(self, transfer: Transfer) -> None:
        """Queue a read request, which is served before rows and takes no room."""
        self.requests.append(transfer)
        if not self.busy:
            self.serve()

    def serve(self) -> None:
        """Send the next transfer that can leave."""
        if self.requests:
            self._leave(self.requests.popleft(), 0)
            return
        while self.ready:
            queue = self.ready.popleft()
            transfer = queue[0]
            if self.ingresses:
                into = self.ingresses[transfer.dst]
                if into.num_bytes > 0 and into.num_bytes + transfer.num_bytes > into.limit:
                    into.waiting.append((self, queue))
                    continue
            queue.popleft()
            if queue:
                self.ready.append(queue)
            self._leave(transfer, transfer.num_bytes)
            return

    def _leave(self, transfer: Transfer, room: int) -> None:
        env = self.env
        num_bytes = transfer.num_bytes
        duration = cost(num_bytes, self.mbps)
        delay = duration + self.latency
        if self.ingresses:
            into = self.ingresses[transfer.dst]
            into.num_bytes += num_bytes
            last = max(env.now + self.latency, into.free_at) + cost(num_bytes, into.mbps)
            into.free_at = max(last, env.now + delay)
            env.timeout(into.free_at - env.now, transfer).callbacks.append(into.arrive)
        else:
            env.timeout(delay, transfer).callbacks.append(_arrive_locally)
        self.busy = True
        env.timeout(duration, room).callbacks.append(self._served)

    def _served(self, event: Event) -> None:
        self.num_bytes -= event.value
        self.busy = False
        # Those admitted are queued before the port chooses whom to serve.
        self.busy = True
        while self.stalled:
            transfer = self.stalled[0]
            if self.num_bytes > 0 and self.num_bytes + transfer.num_bytes > self.limit:
                break
            self.stalled.popleft()
            assert transfer.admitted is not None
            transfer.admitted.succeed()
            self.enqueue(transfer)
        self.busy = False
        self.serve()


def _arrive_locally(event: Event) -> None:
    event.value.arrived(event.value)


class Flag:
    """A word that warps wait for."""

    __slots__ = ("value", "waiters")

    def __init__(self) -> None:
        self.value = 0
        self.waiters: list[tuple[int, Event]] = []

    def add(self) -> None:
        """Add one and wake those whose wait is over."""
        self.value += 1
        if self.waiters:
            over = [event for value, event in self.waiters if self.value >= value]
            self.waiters = [waiter for waiter in self.waiters if self.value < waiter[0]]
            for event in over:
                event.succeed()


class Block:
    """The warps of an SM: its copy pipe, its adders, its barrier, and whom a release covers."""

    def __init__(self, env: Environment, costs: Costs, num_warps: int) -> None:
        self.env = env
        self.costs = costs
        self.num_warps = num_warps
        self.warps: list[Warp] = []
        self.generation = 0
        self.num_arrived = 0
        self.barrier: Event = env.event()
        self.old_outstanding = 0
        self.old_ack = 0
        self.fencing: list[tuple[Warp, Event]] = []
        self.copy_free = 0
        self.reduce_free = 0

    def open_barrier(self, _: Event) -> None:
        """Let the warps at the barrier go on."""
        barrier, self.barrier = self.barrier, self.env.event()
        barrier.succeed()


class Warp:
    """One process: the instructions that its kernel is made of."""

    def __init__(self, block: Block, rank: int) -> None:
        self.block = block
        self.rank = rank
        self.env = block.env
        self.costs = block.costs
        self.debt = 0
        self.outstanding = 0
        self.last_ack = 0
        self.pending_reads = 0
        self.all_read: Event | None = None
        self.end = 0

    def through_sm(self, num_bytes: int) -> int:
        """Reserve the SM's copy pipe; return how long until the bytes have passed it."""
        costs, block = self.costs, self.block
        now = self.env.now + self.debt
        begin = self.debt
        self.debt = 0
        block.copy_free = max(block.copy_free, now) + cost(num_bytes, costs.copy_mbps)
        rounds = -(-num_bytes // costs.flight_bytes)
        return max(block.copy_free - now, costs.issue + rounds * costs.load) + begin

    def acknowledged(self, transfer: Transfer, latency: int) -> None:
        """Account a write of this warp that has arrived; wake releases that waited for it."""
        block = self.block
        ack = self.env.now + latency
        self.outstanding -= 1
        self.last_ack = max(self.last_ack, ack)
        if transfer.generation < block.generation:
            block.old_outstanding -= 1
            block.old_ack = max(block.old_ack, ack)
        if block.fencing and block.old_outstanding == 0:
            free = [entry for entry in block.fencing if entry[0].outstanding == 0]
            block.fencing = [entry for entry in block.fencing if entry[0].outstanding > 0]
            for _, event in free:
                event.succeed()

    def pay(self, picoseconds: int = 0) -> Steps:
        """Let the time of earlier instructions and `picoseconds` more pass."""
        delay, self.debt = self.debt + picoseconds, 0
        if delay > 0:
            yield self.env.timeout(delay)

    def wait_ge(self, flag: Flag, value: int) -> Steps:
        """Poll a flag until it is at least `value`."""
        costs = self.costs
        base = self.env.now + self.debt
        yield from self.pay(costs.l2)
        if flag.value >= value:
            return
        event = self.env.event()
        flag.waiters.append((value, event))
        yield event
        polls = -(-(self.env.now - base) // costs.poll)
        yield self.env.timeout(base + polls * costs.poll + costs.l2 - self.env.now)

    def block_sync(self) -> Steps:
        """Wait for the other warps; their earlier writes count as this warp's from here on."""
        yield from self.pay()
        block = self.block
        block.num_arrived += 1
        barrier = block.barrier
        if block.num_arrived == block.num_warps:
            block.num_arrived = 0
            block.generation += 1
            block.old_outstanding = sum(warp.outstanding for warp in block.warps)
            block.old_ack = max(block.old_ack, *(warp.last_ack for warp in block.warps))
            self.env.timeout(self.costs.sync).callbacks.append(block.open_barrier)
        yield barrier

    def fence(self) -> Steps:
        """Sleep until every write that a release covers has been acknowledged."""
        yield from self.pay()
        block = self.block
        earliest = self.env.now + self.costs.fence
        if self.outstanding or block.old_outstanding:
            event = self.env.event()
            block.fencing.append((self, event))
            yield event
        wake = max(earliest, self.last_ack, block.old_ack)
        yield self.env.timeout(wake - self.env.now)
