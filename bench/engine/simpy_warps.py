"""SMs, warps and flags as a SimPy program: a process per warp over `bench.engine.simpy_ports`."""

from __future__ import annotations

from collections.abc import Generator

from bench.engine.simpy_ports import Costs, Environment, Event, Transfer, cost

Steps = Generator[Event, object, None]


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
        delay, self.debt = self.debt, 0
        now: int = self.env.now + delay
        block.copy_free = max(block.copy_free, now) + cost(num_bytes, costs.copy_mbps)
        rounds = -(-num_bytes // costs.flight_bytes)
        return max(block.copy_free - now, costs.issue + rounds * costs.load) + delay

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
