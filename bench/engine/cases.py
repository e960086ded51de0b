"""Fixed exchanges to time the simulator on, and their timing on the engine and by SimPy."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bench.traffic.plan import Plan
from bench.workloads.routing import Routing
from bench.workloads.workload import Workload
from comms.fabric import load_fabric
from kernels.protocol import Op
from kernels.shape import Shape

if TYPE_CHECKING:
    from kernels.devices.sim import SimDevice

Program = Literal["engine", "simpy"]
OPS: tuple[Op, ...] = ("dispatch", "combine")
PRESET, FABRIC = "deepseek-v3", "h800"
#: Tokens of the exchange before the clock starts.
WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """One world to time.

    Attributes:
        name: as the command line names it.
        num_nodes: nodes of the world.
        ranks_per_node: ranks on each node.
        variant: of kernel `direct`; pull reaches one node only.
        routing: spec string of the workload.
        num_tokens: tokens of each rank.
        num_sms: SMs of each rank.
    """

    name: str
    num_nodes: int
    ranks_per_node: int
    variant: Literal["pull", "push"]
    routing: str
    num_tokens: int = 4096
    num_sms: int = 16


CASES = {
    "ep8": SpeedCase("ep8", 1, 8, "pull", "uniform"),
    "ep64": SpeedCase("ep64", 8, 8, "push", "groups"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed op.

    Attributes:
        case: name of the case.
        program: who ran it.
        op: what was run.
        time_ps: virtual time of the last rank.
        num_events: events handled, None where the program does not count them.
        num_rows: rows copied or read.
        wall_s: seconds that the run took.
        cpu_s: processor seconds; far fewer than `wall_s` where others used the core, too.
        peak_bytes: most memory that the process has had.
    """

    case: str
    program: Program
    op: Op
    time_ps: int
    num_events: int | None
    num_rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Exchange:
    workload: Workload
    shape: Shape
    routing: Routing
    plan: Plan


def time_engine(case: SpeedCase) -> list[Sample]:
    """Time both ops on the engine; memory is this process's peak, so give each call its own."""
    _run_engine(replace(case, num_tokens=min(WARM_UP_TOKENS, case.num_tokens)))
    return _run_engine(case)


def time_simpy(case: SpeedCase) -> list[Sample]:
    """Time both ops of the same exchange as a SimPy program; memory as for `time_engine`."""
    from bench.engine.simpy_direct import run_combine, run_dispatch

    exchange = _exchange(case)
    fabric = load_fabric(FABRIC)
    num_rows = int(exchange.plan.copies.sum())
    samples = []
    for op, run in zip(OPS, (run_dispatch, run_combine), strict=True):
        times = run(exchange.shape, fabric, exchange.routing.topk_idx)
        measured = (times.time_ps, None, num_rows, times.wall_s, times.cpu_s, _peak_bytes())
        samples.append(Sample(case.name, "simpy", op, *measured))
    return samples


def _run_engine(case: SpeedCase) -> list[Sample]:
    exchange = _exchange(case)
    device = _device(case, exchange)
    num_rows = int(exchange.plan.copies.sum())
    samples = []
    for op in OPS:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        _, outcome = device.run([op], "fresh")
        seconds = (time.perf_counter() - begun, time.process_time() - begun_cpu)
        time_ps = int(outcome.end_ps[-1].max())
        measured = (time_ps, outcome.num_events, num_rows, *seconds, _peak_bytes())
        samples.append(Sample(case.name, "engine", op, *measured))
    return samples


def _exchange(case: SpeedCase) -> _Exchange:
    workload = Workload.from_preset(PRESET, case.num_tokens, case.routing)
    shape = Shape(
        num_nodes=case.num_nodes,
        ranks_per_node=case.ranks_per_node,
        num_tokens=workload.num_tokens,
        hidden=workload.hidden,
        num_experts=workload.num_experts,
        num_topk=workload.num_topk,
        num_sms=case.num_sms,
        dispatch_dtype=workload.dispatch_dtype,
        combine_dtype=workload.combine_dtype,
        prefix=workload.prefix,
    )
    routing = workload.topk(shape.world_size, shape.ranks_per_node)
    return _Exchange(workload, shape, routing, Plan.of(routing, shape))


def _device(case: SpeedCase, exchange: _Exchange) -> SimDevice:
    from kernels import direct
    from kernels.devices.base import World
    from kernels.devices.sim import SimDevice

    shape, workload = exchange.shape, exchange.workload
    num_recv = exchange.plan.copies.sum(axis=0)
    world = World(
        shape=shape,
        fabric=load_fabric(FABRIC),
        num_tokens=exchange.plan.num_tokens,
        capacity_rows=int(num_recv.max()),
        skew_ps=np.zeros(shape.world_size, np.int64),
    )
    device = SimDevice(direct.PULL if case.variant == "pull" else direct.PUSH, world)
    for rank in range(shape.world_size):
        num_tokens = int(exchange.plan.num_tokens[rank])
        data: dict[str, npt.NDArray[Any]] = {
            "x": workload.x(rank, num_tokens, shape.dispatch_row, 0),
            "y": workload.y(rank, int(num_recv[rank]), shape.combine_row, 0),
            "topk_idx": exchange.routing.topk_idx[rank],
            "topk_weights": exchange.routing.topk_weights[rank],
        }
        for name, rows in data.items():
            flat = rows.reshape(-1)
            device.view(rank, name, flat.dtype)[: len(flat)] = flat
    device.poison(("recv_x", "recv_topk_idx", "recv_topk_weights", "recv_counts", "out"), num_recv)
    return device


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
