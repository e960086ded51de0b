"""The simulated device: a whole world in this process, its kernels in virtual time."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.errors import UsageError
from comms.fabric import Fabric
from comms.memory import POISON, Layout, Windows
from comms.sim.engine import Engine, Launch, Options, Outcome
from kernels.isa.entry import sim_entry
from kernels.protocol import COMBINE_OUTPUTS, DISPATCH_OUTPUTS, Form, KernelLaunch, Op, Protocol
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


class SimDevice:
    """Windows of all ranks and the engine that runs kernels over them."""

    def __init__(self, protocol: Protocol, world: World, num_warps: int | None = None) -> None:
        shape = world.shape
        if shape.num_sms > world.fabric.num_sms:
            raise UsageError(
                f"num_sms must be at most {world.fabric.num_sms} on {world.fabric.gpu}, "
                f"got {shape.num_sms}"
            )
        self.protocol = protocol
        self.world = world
        self._num_warps = num_warps
        self._settings = protocol.settings(shape)
        layout = Layout({**user_regions(protocol, world), **protocol.regions(shape)})
        self.windows = Windows(layout, shape.world_size)
        self._engine = Engine(world.fabric, shape.num_nodes, shape.ranks_per_node, self.windows)
        self._entries: dict[str, Any] = {}

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""
        return self.windows.view(rank, name, dtype)

    def run(
        self, ops: Sequence[Op], form: Form, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[str], Outcome]:
        """Run operations in order with no host between them.

        Args:
            ops: `dispatch` and `combine`, in order.
            form: whether counts are exchanged or reused.
            on_progress: called with (events, virtual picoseconds).

        Returns:
            The phase of each launch, and the outcome.
        """
        launches: list[Launch] = []
        judged: dict[str, int] = {}
        for op in ops:
            for launch in self.protocol.launches(op, form):
                launches.append(self._launch(launch, op, form))
            for name in DISPATCH_OUTPUTS if op == "dispatch" else COMBINE_OUTPUTS:
                judged[name] = len(launches) - 1
        outcomes = self._engine.run(launches, self._options(ops, judged), on_progress)
        return [launch.name for launch in launches], outcomes

    def _options(self, ops: Sequence[Op], judged: Mapping[str, int]) -> Options:
        shape = self.world.shape
        rows = (shape.dispatch_row, shape.combine_row)
        most = self._settings.get("max_copy_bytes", 0)
        channels = self._settings.get("num_channels", shape.num_sms)
        assert isinstance(most, int)
        assert isinstance(channels, int)
        row_bytes = max(row.stride_bytes for row in rows)
        # Beside rows, kernels copy their counts: up to two int32 for each expert or rank.
        counts_bytes = 8 * (shape.experts_per_rank * shape.world_size + 4)
        return Options(
            slot_bytes=max(row_bytes, counts_bytes, 8 * shape.num_topk, most),
            transfers_per_warp=shape.num_topk + 4,
            num_channels=channels,
            judged_after=judged,
            skew_ps=self.world.skew_ps,
        )

    def _launch(self, launch: KernelLaunch, op: Op, form: Form) -> Launch:
        shape = self.world.shape
        row = shape.dispatch_row if op == "dispatch" else shape.combine_row
        num_blocks = shape.num_sms if launch.sms == "comm" else self.world.fabric.num_sms
        num_warps = self._num_warps or launch.num_warps
        if launch.name not in self._entries:
            entry = sim_entry(launch.kernel, launch.params)  # type: ignore[arg-type]
            self._entries[launch.name] = entry
        common: dict[str, int | str] = {
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
            **self._settings,
        }
        rows = []
        for rank in range(shape.world_size):
            own = {"rank": rank, "num_tokens": int(self.world.num_tokens[rank])}
            rows.append(
                [self._value(name, {**common, **own}, rank) for name in launch.params._fields]
            )
        return Launch(
            name=launch.name,
            entry=self._entries[launch.name].address,
            num_blocks=num_blocks,
            num_warps=num_warps,
            params=np.array(rows, np.int64),
            row_bytes=(row.stride_bytes, row.full_bytes),
            source=inspect.getsourcefile(launch.kernel) or "",
        )

    def _value(self, name: str, values: Mapping[str, int | str], rank: int) -> int:
        if name in values:
            value = values[name]
            return self.windows.layout[value].offset if isinstance(value, str) else value
        regions = self.windows.layout.regions
        alias = values.get(name.removesuffix("_addr"))
        if isinstance(alias, str):
            return self.windows.base(rank) + regions[alias].offset
        if name in regions:
            return regions[name].offset
        if name.endswith("_addr") and name.removesuffix("_addr") in regions:
            return self.windows.base(rank) + regions[name.removesuffix("_addr")].offset
        raise UsageError(
            f"kernel {self.protocol.kernel} asks for parameter {name}, "
            "which is neither a size, a setting, a region nor a region's address"
        )

    def poison(self, names: Sequence[str], num_rows: npt.NDArray[np.int64]) -> None:
        """Fill outputs with poison: the rows expected on each rank and a few more.

        Args:
            names: output regions.
            num_rows: rows that each rank expects, int64 `(world_size,)`.
        """
        strides = self.row_strides()
        for rank in range(self.world.shape.world_size):
            for name in names:
                region = self.view(rank, name)
                stride = strides.get(name)
                end = len(region) if stride is None else (int(num_rows[rank]) + GUARD_ROWS) * stride
                region[:end] = POISON

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
