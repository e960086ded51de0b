"""`direct` dispatch and combine by pull as a SimPy program: what the engine does, in times only.

It follows `kernels.direct` instruction by instruction on one node; where a token goes is computed
before the clock starts, which the engine does while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.simpy_ports import Costs, Egress, Ingress, Transfer, cost
from bench.simpy_warps import Block, Flag, Steps, Warp
from comms.errors import UsageError
from comms.fabric import Fabric
from kernels.direct import DISPATCH_WARPS, PULL_WARPS, counts_row_bytes
from kernels.exchange import share_begin
from kernels.shape import Shape

if TYPE_CHECKING:
    from simpy import Environment, Event


@dataclass(frozen=True, slots=True)
class SimpyTimes:
    """What a run came to: virtual time of the last rank, and the seconds that it took."""

    time_ps: int
    wall_s: float


def load_simpy() -> ModuleType:
    """Import SimPy.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import simpy
    except ImportError as error:
        raise UsageError(
            "the comparison needs simpy, which is not installed; pip install 'epbench[dev]' has it"
        ) from error
    return simpy


def run_dispatch(
    shape: Shape, fabric: Fabric, topk_idx: Sequence[npt.NDArray[np.int32]]
) -> SimpyTimes:
    """Simulate a fresh dispatch on one node.

    Args:
        shape: sizes; one node.
        fabric: rates and costs.
        topk_idx: int32 `(num_tokens, num_topk)` by rank, as for the engine.
    """
    return _run(_World(shape, fabric, DISPATCH_WARPS), _dispatch, topk_idx)


def run_combine(
    shape: Shape, fabric: Fabric, topk_idx: Sequence[npt.NDArray[np.int32]]
) -> SimpyTimes:
    """Simulate a combine by pull on one node; arguments as for `run_dispatch`."""
    return _run(_World(shape, fabric, PULL_WARPS), _combine, topk_idx)


class _Node:
    """What the warps of a rank share."""

    def __init__(self, world: _World) -> None:
        env, costs = world.env, world.costs
        self.link = Egress(env, costs.link_mbps, costs.link_latency, costs.link_bytes)
        self.link.ingresses = world.ingresses
        # As in the engine, local memory queues the bytes that it moves in a microsecond.
        self.memory = Egress(env, costs.hbm_mbps, costs.l2, costs.hbm_mbps)
        # Both ops have a flag of each peer to wait for before the first row, and one at the end.
        self.counted, self.ended = Flag(), Flag()
        self.hello = [Flag() for _ in world.ingresses]
        self.blocks = [Block(env, costs, world.num_warps) for _ in range(world.shape.num_sms)]


class _World:
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
        self.nodes = [_Node(self) for _ in range(shape.world_size)]

    def port(self, warp: Warp, dst: int) -> Egress:
        """Return the port by which a warp's bytes leave for `dst`."""
        node = self.nodes[warp.rank]
        return node.memory if dst == warp.rank else node.link

    def write(self, warp: Warp, dst: int, num_bytes: int) -> Transfer:
        """Return a write of rows to `dst`, which the warp has yet to post."""
        warp.outstanding += 1
        local = dst == warp.rank
        return Transfer(warp, dst, num_bytes, _written_here if local else _written_there)

    def add(self, warp: Warp, dst: int, flag: Flag) -> Steps:
        """Add one to a flag of `dst`."""
        costs = self.costs
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

    def end(self, warp: Warp, worker: int) -> Steps:
        """Tell every rank that this block is done; the first block waits for all others'."""
        shape, costs = self.shape, self.costs
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


def _written_there(transfer: Transfer) -> None:
    transfer.warp.acknowledged(transfer, transfer.warp.costs.link_latency)


Kernel = Callable[[_World, Warp, int, list[list[int]]], Steps]


def _run(world: _World, kernel: Kernel, topk_idx: Sequence[npt.NDArray[np.int32]]) -> SimpyTimes:
    shape, num_workers = world.shape, world.num_workers
    routes = [_destinations(idx, shape.experts_per_rank) for idx in topk_idx]
    warps = []
    begun = time.perf_counter()
    for rank, node in enumerate(world.nodes):
        for worker in range(num_workers):
            block = node.blocks[worker // world.num_warps]
            warp = Warp(block, rank)
            block.warps.append(warp)
            warps.append(warp)
            world.env.process(kernel(world, warp, worker, routes[rank]))
    world.env.run()
    wall_s = time.perf_counter() - begun
    return SimpyTimes(max(max(warp.end, warp.last_ack) for warp in warps), wall_s)


def _destinations(topk_idx: npt.NDArray[np.int32], experts_per_rank: int) -> list[list[int]]:
    """Return the distinct ranks of each token, ascending."""
    return [sorted({int(e) // experts_per_rank for e in row if e >= 0}) for row in topk_idx]


def _dispatch(world: _World, warp: Warp, worker: int, routes: list[list[int]]) -> Steps:
    shape, costs, env = world.shape, world.costs, world.env
    node = world.nodes[warp.rank]
    index = worker % world.num_warps
    first = share_begin(len(routes), worker, world.num_workers)
    last = share_begin(len(routes), worker + 1, world.num_workers)
    warp.debt += costs.l2 + (last - first) * costs.layout
    yield from warp.block_sync()
    if index == 0:
        yield from warp.fence()
        yield from world.add(warp, warp.rank, node.counted)
    if worker < world.num_warps:
        yield from _say_hello(world, warp, worker)
    for source in range(index, shape.world_size, world.num_warps):
        yield from warp.wait_ge(node.hello[source], 1)
    yield from warp.block_sync()
    if worker == 0:
        world.sum_rows(warp, warp.rank)
    world.sum_rows(warp, warp.rank)
    world.sum_rows(warp, worker)

    row_bytes, topk_bytes = shape.dispatch_row.full_bytes, 8 * shape.num_topk
    for token in range(first, last):
        ranks = routes[token]
        warp.debt += costs.layout
        for step in range(len(ranks)):
            dst = ranks[(step + warp.rank + token) % len(ranks)]
            port = world.port(warp, dst)
            # A local copy reads and writes memory.
            moves = 2 if dst == warp.rank else 1
            warp.debt += costs.word_issue
            stalled = port.post(world.write(warp, dst, moves * topk_bytes))
            if stalled is not None:
                yield stalled
            yield env.timeout(warp.through_sm(row_bytes))
            stalled = port.post(world.write(warp, dst, moves * row_bytes))
            if stalled is not None:
                yield stalled
    yield from world.end(warp, worker)


def _say_hello(world: _World, warp: Warp, worker: int) -> Steps:
    shape, node = world.shape, world.nodes[warp.rank]
    if worker == 0:
        yield from warp.wait_ge(node.counted, shape.num_sms)
        world.sum_rows(warp, world.num_workers)
    yield from warp.block_sync()
    num_bytes = counts_row_bytes(shape)
    for peer in range(worker, shape.world_size, world.num_warps):
        yield world.env.timeout(warp.through_sm(num_bytes))
        moves = 2 if peer == warp.rank else 1
        stalled = world.port(warp, peer).post(world.write(warp, peer, moves * num_bytes))
        if stalled is not None:
            yield stalled
    yield from warp.fence()
    for peer in range(worker, shape.world_size, world.num_warps):
        yield from world.add(warp, peer, world.nodes[peer].hello[warp.rank])


def _combine(world: _World, warp: Warp, worker: int, routes: list[list[int]]) -> Steps:
    shape, costs, env = world.shape, world.costs, world.env
    node = world.nodes[warp.rank]
    index = worker % world.num_warps
    warp.debt += costs.l2
    if worker < world.num_warps:
        yield from warp.fence()
        for peer in range(worker, shape.world_size, world.num_warps):
            yield from world.add(warp, peer, world.nodes[peer].hello[warp.rank])
    for peer in range(index, shape.world_size, world.num_warps):
        yield from warp.wait_ge(node.hello[peer], 1)
    yield from warp.block_sync()

    row_bytes = shape.combine_row.full_bytes
    first = share_begin(len(routes), worker, world.num_workers)
    for token in range(first, share_begin(len(routes), worker + 1, world.num_workers)):
        ranks = routes[token]
        begun = env.now + warp.debt
        ready = begun
        if ranks:
            ready = env.now + warp.through_sm(len(ranks) * row_bytes)
            block = warp.block
            adding = cost(len(ranks) * row_bytes, costs.reduce_mbps)
            block.reduce_free = max(block.reduce_free, begun) + adding
            ready = max(ready, block.reduce_free)
        for rank in ranks:
            stalled = _read(world, warp, rank, row_bytes)
            if stalled is not None:
                yield stalled
        if warp.pending_reads:
            warp.all_read = env.event()
            yield warp.all_read
            warp.all_read = None
        if ranks and ranks != [warp.rank]:
            rounds = -(-len(ranks) * row_bytes // costs.flight_bytes)
            ready = max(ready, begun + rounds * (costs.load + 2 * costs.link_latency))
        if ready > env.now:
            yield env.timeout(ready - env.now)
        stalled = node.memory.post(world.write(warp, warp.rank, row_bytes))
        if stalled is not None:
            yield stalled
    yield from world.end(warp, worker)


def _read(world: _World, warp: Warp, rank: int, num_bytes: int) -> Event | None:
    """Start to read a row; return what the warp must wait for before it reads another."""
    warp.pending_reads += 1
    if rank == warp.rank:
        return world.nodes[rank].memory.post(Transfer(warp, rank, num_bytes, _row_read))
    costs = world.costs

    def asked(_: Transfer) -> None:
        world.nodes[rank].link.reply(Transfer(warp, warp.rank, num_bytes, _row_read))

    request_bytes = -(-num_bytes // costs.request_span) * costs.request_bytes
    world.nodes[warp.rank].link.request(Transfer(warp, rank, request_bytes, asked))
    return None


def _row_read(transfer: Transfer) -> None:
    warp = transfer.warp
    warp.pending_reads -= 1
    if warp.pending_reads == 0 and warp.all_read is not None:
        warp.all_read.succeed()
