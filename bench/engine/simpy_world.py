"""Ranks, their ports and their flags as a SimPy program; one node."""

from __future__ import annotations

from types import ModuleType

from bench.engine.simpy_ports import Costs, Egress, Environment, Ingress, Transfer, cost
from bench.engine.simpy_warps import Block, Flag, Steps, Warp
from comms.errors import UsageError
from comms.fabric import Fabric
from kernels.shape import Shape


def load_simpy() -> ModuleType:
    """Import SimPy.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import simpy
    except ImportError as error:
        raise UsageError(
            "the comparison needs simpy, which is not installed; "
            "install it by pip install -e '.[dev]'"
        ) from error
    return simpy


class Node:
    """What the warps of a rank share."""

    def __init__(self, world: World) -> None:
        env, costs = world.env, world.costs
        self.link = Egress(env, costs.link_mbps, costs.link_latency, costs.link_bytes)
        self.link.ingresses = world.ingresses
        # As in the engine, local memory queues the bytes that it moves in a microsecond.
        self.memory = Egress(env, costs.hbm_mbps, costs.l2, costs.hbm_mbps)
        # Both ops have a flag of each peer to wait for before the first row, and one at the end.
        self.counted, self.ended = Flag(), Flag()
        self.hello = [Flag() for _ in world.ingresses]
        self.blocks = [Block(env, costs, world.num_warps) for _ in range(world.shape.num_sms)]


class World:
    """Ranks of one node, and the instructions that name another rank."""

    def __init__(self, shape: Shape, fabric: Fabric, num_warps: int) -> None:
        if shape.num_nodes != 1:
            raise UsageError(f"the SimPy program has one node only, got {shape.num_nodes}; use ep8")
        self.env: Environment = load_simpy().Environment()
        self.shape = shape
        self.costs = costs = Costs.of(fabric)
        self.num_warps = num_warps
        self.num_workers = shape.num_sms * num_warps
        self.ingresses = [
            Ingress(costs.link_mbps, costs.link_bytes) for _ in range(shape.world_size)
        ]
        self.nodes = [Node(self) for _ in range(shape.world_size)]

    def port(self, warp: Warp, dst: int) -> Egress:
        """Return the port by which a warp's bytes leave for `dst`."""
        node = self.nodes[warp.rank]
        return node.memory if dst == warp.rank else node.link

    def write(self, warp: Warp, dst: int, num_bytes: int) -> Transfer:
        """Return a write of rows to `dst`, which the warp has yet to post."""
        warp.outstanding += 1
        local = dst == warp.rank
        return Transfer(warp, dst, num_bytes, _written_here if local else self._written_there)

    def _written_there(self, transfer: Transfer) -> None:
        """Send back what acknowledges a row: time of both ports of the other direction."""
        costs = self.costs
        packets = -(-transfer.num_bytes // costs.packet_bytes)
        answer = cost(packets * costs.ack_bytes, costs.link_mbps)
        for port in (self.nodes[transfer.dst].link, self.ingresses[transfer.warp.rank]):
            port.free_at = max(port.free_at, self.env.now) + answer
        transfer.warp.acknowledged(transfer, costs.link_latency)

    def add(self, warp: Warp, dst: int, flag: Flag) -> Steps:
        """Add one to a flag of `dst`."""
        costs = self.costs
        yield from warp.pay()
        warp.debt += costs.word_issue
        latency = costs.l2 if dst == warp.rank else costs.link_latency

        def arrived(transfer: Transfer) -> None:
            flag.add()
            warp.acknowledged(transfer, latency)

        warp.outstanding += 1
        transfer = Transfer(warp, dst, costs.word_bytes, arrived)
        if dst == warp.rank:
            self.env.timeout(costs.l2).callbacks.append(lambda _: arrived(transfer))
        else:
            stalled = self.port(warp, dst).post(transfer)
            if stalled is not None:
                yield stalled

    def sum_rows(self, warp: Warp, num_rows: int) -> None:
        """Charge a sum of `num_rows` rows of counts."""
        lanes = -(-self.shape.world_size // 32)
        warp.debt += self.costs.l2 + num_rows * lanes * self.costs.word_issue

    def scan(self, warp: Warp) -> None:
        """Charge a prefix sum of a row of counts."""
        lanes = -(-self.shape.world_size // 32)
        warp.debt += self.costs.l2 + 6 * lanes * self.costs.word_issue

    def end(self, warp: Warp, worker: int) -> Steps:
        """Tell every rank that this block is done; the first block waits for all others'."""
        shape = self.shape
        yield from warp.block_sync()
        yield from warp.fence()
        for peer in range(worker % self.num_warps, shape.world_size, self.num_warps):
            yield from self.add(warp, peer, self.nodes[peer].ended)
        if worker % self.num_warps == 0:
            yield from self.add(warp, warp.rank, Flag())
        if worker == 0:
            ended = self.nodes[warp.rank].ended
            yield from warp.wait_ge(ended, shape.world_size * shape.num_sms)
        yield from warp.pay()
        warp.end = self.env.now


def _written_here(transfer: Transfer) -> None:
    transfer.warp.acknowledged(transfer, transfer.warp.costs.l2)
