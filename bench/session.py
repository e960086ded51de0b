"""The data of one case on a device: new inputs for every run, and what its outputs are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.cases import CaseSpec
from bench.check import CheckResult, check_combine, check_dispatch
from bench.traffic.bounds import HalfOp
from bench.traffic.plan import Plan
from bench.workloads.routing import Routing
from bench.workloads.whole_numbers import whole_numbers
from bench.workloads.workload import Workload
from kernels.devices.base import GUARD_ROWS, Device, World
from kernels.protocol import COMBINE_OUTPUTS, DISPATCH_OUTPUTS, Form, Granularity, Protocol
from kernels.reference import Dispatched, RoutingIndex, combine_to, dispatch_to
from kernels.shape import Shape

_PS_PER_US = 10**6

Rows = list[npt.NDArray[np.uint8]]
OpenDevice = Callable[[Protocol, World], Device]


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


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Rows that a run was given, by rank of the whole world; none for an operation not run.

    Attributes:
        x: uint8 `(num_tokens_of_rank, dispatch_row.stride_bytes)`.
        y: uint8 `(num_recv, combine_row.stride_bytes)`.
        outputs: regions that were poisoned.
    """

    x: Rows
    y: Rows
    outputs: tuple[str, ...]


class Session:
    """The state of one case, from its first run to its last."""

    def __init__(self, spec: CaseSpec, protocol: Protocol, open_device: OpenDevice) -> None:
        """Write the routing into a new device.

        Args:
            spec: the case.
            protocol: its kernel.
            open_device: makes the device.
        """
        work, shape = spec.workload, spec.shape()
        # Routing, rows and bytes do not depend on the SM budget and on knobs: specs that differ in
        # them share them.
        shared = replace(shape, num_sms=1, knobs=())
        routing = _routing(work, shape.world_size, shape.ranks_per_node)
        self.plan = _plan(work, shared)
        self.shape = shape
        self._work = work
        self._protocol = protocol
        self._index = _index(work, shared, protocol.granularity)
        ranks = range(shape.world_size)
        self._num_tokens = np.array([len(idx) for idx in routing.topk_idx], np.int64)
        self._num_recv = np.array([self._index.num_recv(rank) for rank in ranks], np.int64)
        skew_ps = np.linspace(0, spec.skew_us * _PS_PER_US, shape.world_size).astype(np.int64)
        capacity = int(self._num_recv.max(initial=0))
        world = World(shape, spec.fabric, self._num_tokens, capacity, skew_ps)
        self._device = open_device(protocol, world)
        self._num_loads = 0
        for rank in self._device.ranks:
            self._device.write(rank, "topk_idx", routing.topk_idx[rank])
            self._device.write(rank, "topk_weights", routing.topk_weights[rank])

    def load(self, ops: Sequence[HalfOp], form: Form) -> Inputs:
        """Write new data for operations and poison their outputs."""
        self._num_loads += 1
        salt = self._num_loads
        x = self._inputs(salt) if "dispatch" in ops else []
        y = self._outputs_of_experts(salt) if "combine" in ops else []
        names = [*(DISPATCH_OUTPUTS if x else ()), *(COMBINE_OUTPUTS if y else ())]
        if form == "cached":
            # Counts are what the cached form is given.
            names = [name for name in names if name != "recv_counts"]
        self.poison(names)
        return Inputs(x, y, tuple(names))

    def poison(self, outputs: Sequence[str]) -> None:
        """Poison outputs again."""
        self._device.poison(outputs, self._num_recv)

    def check(self, inputs: Inputs, num_late: npt.NDArray[np.int64]) -> CheckResult:
        """Return what the outputs of this process's ranks are worth.

        Args:
            inputs: what `load` returned before the run.
            num_late: writes after the kernel returned, int64 `(world_size,)`.
        """
        check = CheckResult()
        for rank in self._device.ranks:
            late = int(num_late[rank])
            if inputs.x:
                check += self._check_dispatch(rank, inputs.x, late)
                late = 0
            if inputs.y:
                check += self._check_combine(rank, inputs.y, late)
        return check

    def outputs(self, rank: int, names: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
        """Return what `load` poisoned of a rank's outputs, rows of bytes by region."""
        strides = self._device.row_strides()
        parts = {}
        for name in names:
            num_bytes = self._device.windows.layout[name].num_bytes
            stride = strides.get(name, self.shape.combine_row.stride_bytes)
            if name == "recv_counts":
                stride = num_bytes
            if name in strides:
                num_bytes = (int(self._num_recv[rank]) + GUARD_ROWS) * stride
            parts[name] = self._device.read(rank, name, num_bytes=num_bytes).reshape(-1, stride)
        return parts

    def _inputs(self, salt: int) -> Rows:
        rows = [
            self._work.x(rank, int(count), self.shape.dispatch_row, salt)
            for rank, count in enumerate(self._num_tokens)
        ]
        for rank in self._device.ranks:
            self._device.write(rank, "x", rows[rank])
        return rows

    def _outputs_of_experts(self, salt: int) -> Rows:
        rows = [
            self._work.y(rank, int(count), self.shape.combine_row, salt)
            for rank, count in enumerate(self._num_recv)
        ]
        if self._protocol.whole_numbers:
            rows = [whole_numbers(each, self.shape.combine_row) for each in rows]
        for rank in self._device.ranks:
            self._device.write(rank, "y", rows[rank])
        return rows

    def _check_dispatch(self, rank: int, x: Rows, num_late: int) -> CheckResult:
        expected = dispatch_to(rank, x, self._index)
        num_rows = int(self._num_recv[rank]) + GUARD_ROWS
        num_ids = expected.recv_topk_idx.shape[1]

        def rows(name: str, dtype: npt.DTypeLike, width: int) -> npt.NDArray[Any]:
            num_bytes = num_rows * width * np.dtype(dtype).itemsize
            return self._device.read(rank, name, dtype, num_bytes).reshape(num_rows, width)

        found = Dispatched(
            recv_x=rows("recv_x", np.uint8, self.shape.dispatch_row.stride_bytes),
            recv_topk_idx=rows("recv_topk_idx", np.int32, num_ids),
            recv_topk_weights=rows("recv_topk_weights", np.float32, num_ids),
            recv_counts=self._device.read(rank, "recv_counts", np.int32).reshape(
                expected.recv_counts.shape
            ),
        )
        return check_dispatch(rank, found, expected, index=self._index, num_late=num_late)

    def _check_combine(self, rank: int, y: Rows, num_late: int) -> CheckResult:
        expected = combine_to(rank, y, self._index, hops=self._protocol.hops)
        found = self._device.read(rank, "out", num_bytes=expected.size).reshape(expected.shape)
        return check_combine(rank, found, expected, num_late=num_late)
