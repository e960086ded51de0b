"""The simulated device: a whole world in this process, its kernels in virtual time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from comms.errors import UsageError
from comms.memory import Layout, Windows
from comms.sim.engine import Engine, Launch, Options, Outcome
from comms.sim.timeline import Recorder
from kernels.devices.base import Device, World, user_regions
from kernels.isa import sim
from kernels.isa.entry import fiber_entry
from kernels.isa.stages import stage_names
from kernels.protocol import COMBINE_OUTPUTS, DISPATCH_OUTPUTS, Form, KernelLaunch, Op, Protocol


class SimDevice(Device):
    """Windows of all ranks and the engine that runs kernels over them."""

    windows: Windows

    def __init__(self, protocol: Protocol, world: World, num_warps: int | None = None) -> None:
        shape = world.shape
        if shape.num_sms > world.fabric.num_sms:
            raise UsageError(
                f"num_sms must be at most {world.fabric.num_sms} on {world.fabric.gpu}, "
                f"got {shape.num_sms}"
            )
        super().__init__(protocol, world)
        self.ranks = range(shape.world_size)
        self._num_warps = num_warps
        layout = Layout({**user_regions(protocol, world), **protocol.regions(shape)})
        self.windows = Windows(layout, shape.world_size)
        self._engine = Engine(world.fabric, shape.num_nodes, shape.ranks_per_node, self.windows)
        self._entries: dict[str, Any] = {}

    def run(
        self,
        ops: Sequence[Op],
        form: Form,
        on_progress: Callable[[int, int], None] | None = None,
        recorder: Recorder | None = None,
    ) -> tuple[list[str], Outcome]:
        """Run operations in order with no host between them.

        Args:
            ops: `dispatch` and `combine`, in order.
            form: whether counts are exchanged or reused.
            on_progress: called with (events, virtual picoseconds).
            recorder: keeps what happens.

        Returns:
            The phase of each launch, and the outcome.
        """
        launches: list[Launch] = []
        judged: dict[str, int] = {}
        for op in ops:
            for launch in self.protocol.launches(op, form):
                assert isinstance(launch, KernelLaunch), f"{launch.name} needs a host"
                launches.append(self._launch(launch, op, form))
            for name in DISPATCH_OUTPUTS if op == "dispatch" else COMBINE_OUTPUTS:
                judged[name] = len(launches) - 1
        options = self._options(ops, judged)
        outcomes = self._engine.run(launches, options, on_progress, recorder)
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
        num_warps = self._num_warps or launch.warps(shape)
        if launch.name not in self._entries:
            entry = fiber_entry(launch.kernel, launch.params, sim)  # type: ignore[arg-type]
            self._entries[launch.name] = entry
        rows = [self._params(launch, rank, form, num_blocks, num_warps) for rank in self.ranks]
        return Launch(
            name=launch.name,
            entry=self._entries[launch.name].address,
            num_blocks=num_blocks,
            num_warps=num_warps,
            params=np.array(rows, np.int64),
            row_bytes=(row.stride_bytes, row.full_bytes),
            stages=stage_names(launch.kernel),
        )
