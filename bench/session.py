"""A device with the inputs of one case on it: runs operations on new data and checks what they
leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bench.cases import CaseSpec
from bench.check import CheckResult, check_combine, check_dispatch
from bench.traffic.plan import Plan
from bench.workloads.routing import Routing
from bench.workloads.workload import Workload
from comms.sim.engine import PS_PER_US, Outcome
from kernels.devices.sim import GUARD_ROWS, SimDevice, World
from kernels.protocol import COMBINE_OUTPUTS, DISPATCH_OUTPUTS, Form, Granularity, Op, Protocol
from kernels.reference import Dispatched, RoutingIndex, combine_to, dispatch_to
from kernels.shape import Shape

OnEvents = Callable[[int, int], None]


@lru_cache(maxsize=1)
def _routing(workload: Workload, world_size: int, ranks_per_node: int) -> Routing:
    return workload.topk(world_size, ranks_per_node)


@lru_cache(maxsize=2)
def _index(workload: Workload, shape: Shape, granularity: Granularity) -> RoutingIndex:
    routing = _routing(workload, shape.world_size, shape.ranks_per_node)
    return RoutingIndex.build(routing, shape, granularity)


@lru_cache(maxsize=1)
def _plan(workload: Workload, shape: Shape) -> Plan:
    return Plan.of(_routing(workload, shape.world_size, shape.ranks_per_node), shape)


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of an operation.

    Attributes:
        phases: name of each launch.
        outcome: when the launches began and ended.
        check: what the outputs were worth.
    """

    phases: list[str]
    outcome: Outcome
    check: CheckResult


class Session:
    """The state of one case, from its first run to its last."""

    def __init__(self, spec: CaseSpec, protocol: Protocol) -> None:
        work, shape = spec.workload, spec.shape()
        # Routing, rows and bytes do not depend on the SM budget: specs that differ in it
        # share them.
        shared = replace(shape, num_sms=1)
        routing = _routing(work, shape.world_size, shape.ranks_per_node)
        self.plan = _plan(work, shared)
        self.shape = shape
        self._work = work
        self._form: Form = spec.form
        self._protocol = protocol
        self._index = _index(work, shared, protocol.granularity)
        ranks = range(shape.world_size)
        self._num_tokens = np.array([len(idx) for idx in routing.topk_idx], np.int64)
        self._num_recv = np.array([self._index.num_recv(rank) for rank in ranks], np.int64)
        skew_ps = np.linspace(0, spec.skew_us * PS_PER_US, shape.world_size).astype(np.int64)
        capacity = int(self._num_recv.max(initial=0))
        world = World(shape, spec.fabric, self._num_tokens, capacity, skew_ps)
        self._device = SimDevice(protocol, world)
        self._num_runs = 0
        for rank in ranks:
            self._write(rank, "topk_idx", routing.topk_idx[rank])
            self._write(rank, "topk_weights", routing.topk_weights[rank])

    def run(self, ops: Sequence[Op], on_events: OnEvents, form: Form | None = None) -> Ran:
        """Run operations in order with no host between them, on new data, and check their outputs.

        Args:
            ops: `dispatch`, `combine` or both.
            on_events: called with (events, virtual picoseconds).
            form: replaces the case's own.

        Raises:
            TimeoutFailure: the kernels deadlock.
            EpbenchError: a kernel fails.
        """
        self._num_runs += 1
        salt = self._num_runs
        x = self._inputs("dispatch" in ops, salt)
        y = self._outputs_of_experts("combine" in ops, salt)
        names = [*(DISPATCH_OUTPUTS if x else ()), *(COMBINE_OUTPUTS if y else ())]
        if (form or self._form) == "cached":
            # Counts are what the cached form is given.
            names = [name for name in names if name != "recv_counts"]
        self._device.poison(names, self._num_recv)
        phases, outcome = self._device.run(ops, form or self._form, on_events)
        check = CheckResult()
        for rank in range(self.shape.world_size):
            late = int(outcome.num_late[rank])
            if x:
                check += self._check_dispatch(rank, x, late)
                late = 0
            if y:
                check += self._check_combine(rank, y, late)
        return Ran(phases, outcome, check)

    def _write(self, rank: int, name: str, values: npt.NDArray[np.generic]) -> None:
        self._device.view(rank, name)[: values.nbytes] = values.reshape(-1).view(np.uint8)

    def _inputs(self, wanted: bool, salt: int) -> list[npt.NDArray[np.uint8]]:
        if not wanted:
            return []
        rows = [
            self._work.x(rank, int(count), self.shape.dispatch_row, salt)
            for rank, count in enumerate(self._num_tokens)
        ]
        for rank, own in enumerate(rows):
            self._write(rank, "x", own)
        return rows

    def _outputs_of_experts(self, wanted: bool, salt: int) -> list[npt.NDArray[np.uint8]]:
        if not wanted:
            return []
        rows = [
            self._work.y(rank, int(count), self.shape.combine_row, salt)
            for rank, count in enumerate(self._num_recv)
        ]
        for rank, own in enumerate(rows):
            self._write(rank, "y", own)
        return rows

    def _check_dispatch(
        self, rank: int, x: list[npt.NDArray[np.uint8]], num_late: int
    ) -> CheckResult:
        expected = dispatch_to(rank, x, self._index)
        num_rows = int(self._num_recv[rank]) + GUARD_ROWS
        num_ids = expected.recv_topk_idx.shape[1]
        stride = self.shape.dispatch_row.stride_bytes
        view = self._device.view
        found = Dispatched(
            recv_x=view(rank, "recv_x")[: num_rows * stride].reshape(num_rows, stride),
            recv_topk_idx=view(rank, "recv_topk_idx", np.int32)[: num_rows * num_ids].reshape(
                num_rows, num_ids
            ),
            recv_topk_weights=view(rank, "recv_topk_weights", np.float32)[
                : num_rows * num_ids
            ].reshape(num_rows, num_ids),
            recv_counts=view(rank, "recv_counts", np.int32).reshape(expected.recv_counts.shape),
        )
        return check_dispatch(rank, found, expected, index=self._index, num_late=num_late)

    def _check_combine(
        self, rank: int, y: list[npt.NDArray[np.uint8]], num_late: int
    ) -> CheckResult:
        expected = combine_to(rank, y, self._index, hops=self._protocol.hops)
        found = self._device.view(rank, "out")[: expected.size].reshape(expected.shape)
        return check_combine(rank, found, expected, num_late=num_late)
