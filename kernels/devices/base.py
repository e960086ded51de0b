"""What devices share: the memory that a harness sees, and how parameters are filled by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.cuda.clocks import Clock
from comms.errors import UsageError
from comms.fabric import Fabric
from comms.memory import POISON, AnyWindows
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

#: Rows after the last expected one that stay poisoned, so that a write past the end is seen.
GUARD_ROWS = 8


@dataclass(frozen=True, slots=True)
class World:
    """What the harness hands to a device.

    Attributes:
        shape: sizes.
        fabric: rates and costs.
        num_tokens: tokens of each rank, int64 `(world_size,)`.
        capacity_rows: rows that `recv_x` and `y` have room for.
        skew_ps: start of each rank's first launch, int64 `(world_size,)`.
    """

    shape: Shape
    fabric: Fabric
    num_tokens: npt.NDArray[np.int64]
    capacity_rows: int
    skew_ps: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a kernel that does not end by itself.

    Attributes:
        abort_address: address of a word that is not 0 when all kernels shall end.
        wait_s: longest that a wait may take.
    """

    abort_address: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Timed:
    """How long an operation took on a process's ranks, in nanoseconds.

    Attributes:
        phases: name of each launch.
        total_ns: from when all ranks had met to the end of the last launch.
        phases_ns: of each launch, `(num_launches,)`.
        timer_ns: `total_ns` by the GPU's own timer, None where there is none.
    """

    phases: list[str]
    total_ns: float
    phases_ns: npt.NDArray[Any]
    timer_ns: int | None = None


class Device:
    """A protocol's windows, and what its kernels are told.

    Attributes:
        ranks: the ranks that this process writes inputs for and checks.
    """

    windows: AnyWindows
    ranks: Sequence[int]

    def __init__(self, protocol: Protocol, world: World) -> None:
        self.protocol = protocol
        self.world = world
        self._settings = protocol.settings(world.shape)

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""
        return self.windows.view(rank, name, dtype)

    def write(self, rank: int, name: str, array: npt.NDArray[Any]) -> None:
        """Copy an array of the host to the start of a region of an own rank."""
        data = array.reshape(-1).view(np.uint8)
        self.view(rank, name)[: len(data)] = data

    def read(
        self,
        rank: int,
        name: str,
        dtype: npt.DTypeLike = np.uint8,
        num_bytes: int | None = None,
    ) -> npt.NDArray[Any]:
        """Return the first bytes of a region of an own rank, all by default, as a flat array.

        Where the host addresses the memory the array shares it.
        """
        return self.view(rank, name)[:num_bytes].view(dtype)

    def fill(self, rank: int, name: str, byte: int, num_bytes: int) -> None:
        """Set the first bytes of a region of an own rank."""
        self.view(rank, name)[:num_bytes] = byte

    def poison(self, names: Sequence[str], num_rows: npt.NDArray[np.int64]) -> None:
        """Fill outputs of this process's ranks with poison: the rows expected and a few more.

        Args:
            names: output regions.
            num_rows: rows that each rank expects, int64 `(world_size,)`.
        """
        strides = self.row_strides()
        for rank in self.ranks:
            for name in names:
                end, stride = self.windows.layout[name].num_bytes, strides.get(name)
                if stride is not None:
                    end = (int(num_rows[rank]) + GUARD_ROWS) * stride
                self.fill(rank, name, POISON, end)

    def row_strides(self) -> dict[str, int]:
        """Return the bytes between rows of the regions that have a row for each received row."""
        shape = self.world.shape
        num_ids = 1 if self.protocol.granularity == "selection" else shape.num_topk
        return {
            "recv_x": shape.dispatch_row.stride_bytes,
            "recv_topk_idx": 4 * num_ids,
            "recv_topk_weights": 4 * num_ids,
            "y": shape.combine_row.stride_bytes,
        }

    def _params(
        self, launch: KernelLaunch, rank: int, form: Form, num_blocks: int, num_warps: int
    ) -> list[int]:
        """Return a rank's parameters of a launch."""
        shape = self.world.shape
        values: dict[str, int | str] = {
            "world_size": shape.world_size,
            "ranks_per_node": shape.ranks_per_node,
            "num_sms": num_blocks,
            "num_warps": num_warps,
            "num_topk": shape.num_topk,
            "experts_per_rank": shape.experts_per_rank,
            "cached": int(form == "cached"),
            "x_row_bytes": shape.dispatch_row.stride_bytes,
            "y_row_bytes": shape.combine_row.stride_bytes,
            "x_row_full_bytes": shape.dispatch_row.full_bytes,
            "y_row_full_bytes": shape.combine_row.full_bytes,
            "rails": int(self.world.fabric.cross_rail == "forbidden"),
            **{knob.name: knob.of(shape) for knob in self.protocol.knobs},
            **self._settings,
            "rank": rank,
            "num_tokens": int(self.world.num_tokens[rank]),
        }
        return [self._value(name, values, rank) for name in launch.params._fields]

    def _value(self, name: str, values: Mapping[str, int | str], rank: int) -> int:
        layout = self.windows.layout
        if name in values:
            value = values[name]
            return layout[value].offset if isinstance(value, str) else value
        alias = values.get(name.removesuffix("_addr"))
        if isinstance(alias, str):
            return self.windows.base(rank) + layout[alias].offset
        if name in layout.regions:
            return layout[name].offset
        if name.endswith("_addr") and name.removesuffix("_addr") in layout.regions:
            return self.windows.base(rank) + layout[name.removesuffix("_addr")].offset
        raise UsageError(
            f"kernel {self.protocol.kernel} asks for parameter {name}, "
            "which is neither a size, a setting, a region nor a region's address"
        )


class MeasuredDevice(Device):
    """A device on real clocks, one of each process of a world."""

    @property
    def copies_plainly(self) -> bool:
        """Whether the time of `copy_plain` is to be held against kernels."""
        raise NotImplementedError

    def run(self, ops: Sequence[Op], form: Form, *, is_timed: bool = False) -> Timed:
        """Let all ranks meet, then run operations in order with no host between kernels.

        Args:
            ops: `dispatch` and `combine`, in order.
            form: whether counts are exchanged or reused.
            is_timed: whether the time will be kept: caches are emptied first.

        Raises:
            ProgramFailed: a kernel failed, here or on another rank.
            RuntimeFailure: a library or the device failed.
        """
        raise NotImplementedError

    def copy_plain(self, num_bytes: int) -> float:
        """Let all ranks meet, then copy bytes without a kernel; return its nanoseconds."""
        raise NotImplementedError

    def clock(self) -> Clock | None:
        """Return what the device's clock is at, None where it has none."""
        return None

    def reset(self) -> None:
        """Let kernels of this rank run again after some have failed; none may be running."""

    def close(self) -> None:
        """Give back what the device holds; collective."""
        raise NotImplementedError


def user_regions(protocol: Protocol, world: World) -> dict[str, int]:
    """Return the regions that the harness owns, name to bytes."""
    shape = world.shape
    tokens = max(shape.num_tokens, 1)
    capacity = world.capacity_rows + GUARD_ROWS
    num_ids = 1 if protocol.granularity == "selection" else shape.num_topk
    counts = shape.experts_per_rank if protocol.granularity == "selection" else 1
    return {
        "x": tokens * shape.dispatch_row.stride_bytes,
        "topk_idx": 4 * tokens * shape.num_topk,
        "topk_weights": 4 * tokens * shape.num_topk,
        "recv_x": capacity * shape.dispatch_row.stride_bytes,
        "recv_topk_idx": 4 * capacity * num_ids,
        "recv_topk_weights": 4 * capacity * num_ids,
        "recv_counts": 4 * shape.world_size * counts,
        "y": capacity * shape.combine_row.stride_bytes,
        "out": tokens * shape.combine_row.stride_bytes,
    }
