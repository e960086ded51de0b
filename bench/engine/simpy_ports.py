"""Ports as a SimPy program, for a check of the engine's times and a speed to compare with.

Rules and units are those of `comms.sim`: picoseconds, MB/s, costs rounded up. No data moves. Ports
are callbacks on timeouts, so that only warps are processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comms.fabric import Fabric

if TYPE_CHECKING:
    from bench.engine.simpy_warps import Warp

#: SimPy lets its clock be a float and an event's value be anything; here they are int and Transfer.
Environment = Any
Event = Any
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
    ack_bytes: int
    packet_bytes: int
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
            ack_bytes=int(sm.write_ack_bytes.value),
            packet_bytes=int(sm.write_packet_bytes.value),
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
        self.free_at = 0
        self.busy = False
        self.ingresses: list[Ingress] = []
        self.queues: dict[int, deque[Transfer]] = {}
        self.ready: deque[deque[Transfer]] = deque()
        self.stalled: deque[Transfer] = deque()
        self.requests: deque[Transfer] = deque()

    def post(self, transfer: Transfer) -> Event | None:
        """Queue a transfer; return what its warp must wait for where there is no room."""
        num_bytes = self.num_bytes
        if self.stalled or (num_bytes > 0 and num_bytes + transfer.num_bytes > self.limit):
            transfer.admitted = self.env.event()
            self.stalled.append(transfer)
            return transfer.admitted
        self.reply(transfer)
        return None

    def reply(self, transfer: Transfer) -> None:
        """Queue a transfer that no warp waits to issue, room or not."""
        self._enqueue(transfer)
        if not self.busy:
            self.serve()

    def _enqueue(self, transfer: Transfer) -> None:
        self.num_bytes += transfer.num_bytes
        queue = self.queues.get(transfer.dst)
        if queue is None:
            queue = self.queues[transfer.dst] = deque()
        if not queue:
            self.ready.append(queue)
        queue.append(transfer)

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
        begin = max(env.now, self.free_at)
        self.free_at = begin + duration
        delay = self.free_at + self.latency - env.now
        if self.ingresses:
            into = self.ingresses[transfer.dst]
            into.num_bytes += num_bytes
            last = max(begin + self.latency, into.free_at) + cost(num_bytes, into.mbps)
            into.free_at = max(last, env.now + delay)
            env.timeout(into.free_at - env.now, transfer).callbacks.append(into.arrive)
        else:
            env.timeout(delay, transfer).callbacks.append(_arrive_locally)
        self.busy = True
        env.timeout(self.free_at - env.now, room).callbacks.append(self._served)

    def _served(self, event: Event) -> None:
        self.num_bytes -= event.value
        self.busy = False
        while self.stalled:
            transfer = self.stalled[0]
            if self.num_bytes > 0 and self.num_bytes + transfer.num_bytes > self.limit:
                break
            self.stalled.popleft()
            assert transfer.admitted is not None
            transfer.admitted.succeed()
            self._enqueue(transfer)
        self.serve()


def _arrive_locally(event: Event) -> None:
    event.value.arrived(event.value)
