"""`direct` dispatch and combine by pull as a SimPy program: what the engine does, in times only.

It follows `kernels.direct` instruction by instruction on one node. Where tokens go is computed
before the clock starts; the engine does it while it runs, and moves data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.engine.simpy_ports import Event, Transfer, cost
from bench.engine.simpy_warps import Steps, Warp
from bench.engine.simpy_world import World
from comms.fabric import Fabric
from kernels.direct import DISPATCH_WARPS, PULL_WARPS, counts_row_bytes
from kernels.exchange import share_begin
from kernels.shape import Shape


@dataclass(frozen=True, slots=True)
class SimpyTimes:
    """Virtual time of the last rank; wall and processor seconds that the run took."""

    time_ps: int
    wall_s: float
    cpu_s: float


def run_dispatch(
    shape: Shape, fabric: Fabric, topk_idx: Sequence[npt.NDArray[np.int32]]
) -> SimpyTimes:
    """Simulate a fresh dispatch on one node.

    Args:
        shape: sizes; one node.
        fabric: rates and costs.
        topk_idx: int32 `(num_tokens, num_topk)` by rank, as for the engine.
    """
    return _run(World(shape, fabric, DISPATCH_WARPS.of(shape)), _dispatch, topk_idx)


def run_combine(
    shape: Shape, fabric: Fabric, topk_idx: Sequence[npt.NDArray[np.int32]]
) -> SimpyTimes:
    """Simulate a combine by pull on one node; arguments as for `run_dispatch`."""
    return _run(World(shape, fabric, PULL_WARPS.of(shape)), _combine, topk_idx)


Kernel = Callable[[World, Warp, int, list[list[int]]], Steps]


def _run(world: World, kernel: Kernel, topk_idx: Sequence[npt.NDArray[np.int32]]) -> SimpyTimes:
    shape, num_workers = world.shape, world.num_workers
    routes = [_destinations(idx, shape.experts_per_rank) for idx in topk_idx]
    warps = []
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for rank, node in enumerate(world.nodes):
        for worker in range(num_workers):
            block = node.blocks[worker // world.num_warps]
            warp = Warp(block, rank)
            block.warps.append(warp)
            warps.append(warp)
            world.env.process(kernel(world, warp, worker, routes[rank]))
    world.env.run()
    seconds = (time.perf_counter() - begun, time.process_time() - begun_cpu)
    return SimpyTimes(max(max(warp.end, warp.last_ack) for warp in warps), *seconds)


def _destinations(topk_idx: npt.NDArray[np.int32], experts_per_rank: int) -> list[list[int]]:
    """Return the distinct ranks of each token, ascending."""
    return [sorted({int(e) // experts_per_rank for e in row if e >= 0}) for row in topk_idx]


def _dispatch(world: World, warp: Warp, worker: int, routes: list[list[int]]) -> Steps:
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
        warp.debt += shape.world_size * costs.word_issue
        world.sum_rows(warp, warp.rank)
    for num_rows in (warp.rank, worker, 0):
        world.sum_rows(warp, num_rows)
    world.scan(warp)

    row_bytes, topk_bytes = shape.dispatch_row.full_bytes, 8 * shape.num_topk
    for token in range(first, last):
        ranks = routes[token]
        warp.debt += costs.layout
        for step in range(len(ranks)):
            dst = ranks[(step + warp.rank + token) % len(ranks)]
            port = world.port(warp, dst)
            # A local copy reads and writes memory.
            moves = 2 if dst == warp.rank else 1
            # The token's rank and row there are loaded, then its ids and weights are written.
            warp.debt += 2 * costs.word_issue
            if warp.debt > costs.l2:
                yield from warp.pay()
            warp.debt += costs.word_issue
            stalled = port.post(world.write(warp, dst, moves * topk_bytes))
            if stalled is not None:
                yield stalled
            yield env.timeout(warp.through_sm(row_bytes))
            stalled = port.post(world.write(warp, dst, moves * row_bytes))
            if stalled is not None:
                yield stalled
    yield from world.end(warp, worker)


def _say_hello(world: World, warp: Warp, worker: int) -> Steps:
    shape, node = world.shape, world.nodes[warp.rank]
    if worker == 0:
        yield from warp.wait_ge(node.counted, shape.num_sms)
        world.sum_rows(warp, world.num_workers)
        world.scan(warp)
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


def _combine(world: World, warp: Warp, worker: int, routes: list[list[int]]) -> Steps:
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
        warp.debt += costs.word_issue
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


def _read(world: World, warp: Warp, rank: int, num_bytes: int) -> Event | None:
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
