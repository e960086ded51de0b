"""The engine as Python sees it: a world of ranks, launches to run, what came of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from comms.errors import EpbenchError, TimeoutFailure, UsageError
from comms.fabric import Fabric
from comms.fiber import STACK_BYTES, Stacks
from comms.memory import Windows
from comms.sim import report
from comms.sim.build import World, build_arrays
from comms.sim.loop import compiled_loop
from comms.sim.timeline import Recorder

#: Events between two looks at the clock, the progress bar and Ctrl-C: a fraction of a second.
SLICE_EVENTS = 200_000
#: Virtual time and events after which a run that never settles is ended.
TIME_LIMIT_PS = 10**13
EVENT_LIMIT = 2 * 10**9
PS_PER_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on every rank.

    Attributes:
        name: the phase it is recorded as.
        entry: address of the compiled entry, which takes the address of a rank's parameters.
        num_blocks: blocks, one on each SM used.
        num_warps: warps of a block.
        params: int64 `(world_size, num_params)`, a row by rank.
        row_bytes: bytes of a row in memory, and the bytes that such a row is charged.
        stages: names of the numbers that the kernel marks its stages by.
    """

    name: str
    entry: int
    num_blocks: int
    num_warps: int
    params: npt.NDArray[np.int64]
    row_bytes: tuple[int, int]
    stages: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is charged and judged.

    Attributes:
        slot_bytes: most bytes that one copy moves.
        transfers_per_warp: most rows that a warp reads at once, and its writes under way.
        num_channels: network channels of a rank.
        judged_after: region name to index of the launch after which a write to it is late.
        skew_ps: start of each rank's first launch, int64 `(world_size,)`, or None for zeros.
    """

    slot_bytes: int
    transfers_per_warp: int
    num_channels: int
    judged_after: Mapping[str, int] = field(default_factory=dict)
    skew_ps: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        start_ps: int64 `(num_launches, world_size)`, when each launch began.
        end_ps: likewise, when it ended.
        num_late: int64 `(world_size,)`, writes that came after the launch whose output they are.
        num_events: events handled.
        num_rows: rows copied or read.
        port_bytes: int64 `(world_size, NUM_PORTS)`, bytes that left or entered by each port.
    """

    start_ps: npt.NDArray[np.int64]
    end_ps: npt.NDArray[np.int64]
    num_late: npt.NDArray[np.int64]
    num_events: int
    num_rows: int
    port_bytes: npt.NDArray[np.int64]


class Engine:
    """Runs launches in virtual time over the windows of one world."""

    def __init__(
        self, fabric: Fabric, num_nodes: int, ranks_per_node: int, windows: Windows
    ) -> None:
        self._world = World(fabric, num_nodes * ranks_per_node, ranks_per_node, windows)
        self._stacks: Stacks | None = None

    def run(
        self,
        launches: Sequence[Launch],
        options: Options,
        on_progress: Callable[[int, int], None] | None = None,
        recorder: Recorder | None = None,
    ) -> Outcome:
        """Run launches in order on every rank, with no host between them.

        Args:
            launches: the kernels.
            options: how they are charged.
            on_progress: called now and then with (events so far, virtual picoseconds).
            recorder: keeps what happens, also of a run that fails.

        Raises:
            TimeoutFailure: the kernels deadlock, or reach the limit of events or of virtual time.
            UsageError: a block has more warps than an SM has room for.
            EpbenchError: a kernel raised, or left its regions.
        """
        run_slice = compiled_loop()
        world, windows = self._world, self._world.windows
        stacks = self._reserve_stacks(launches)
        arrays = build_arrays(world, launches, options, stacks)
        h = arrays["header"][0]
        address = int(arrays["header"].ctypes.data)
        if recorder:
            recorder.attach(arrays)
        while run_slice(address, SLICE_EVENTS, TIME_LIMIT_PS):
            if on_progress:
                on_progress(int(h["events"]), int(h["now"]))
            if h["events"] > EVENT_LIMIT:
                break
        if recorder:
            recorder.finish(arrays, launches, windows.layout)
        if overflowed := stacks.overflowed():
            self._stacks = None
            raise EpbenchError(
                f"a kernel needs more than {STACK_BYTES} bytes of stack: warp {overflowed[0]}"
            )
        if h["error"]:
            raise EpbenchError(report.describe_error(arrays, windows.layout, launches))
        if h["live_ranks"]:
            raise TimeoutFailure(report.describe_blocked(arrays, windows, launches))
        if violations := int(arrays["ports"]["violations"].sum()):
            raise AssertionError(f"{violations} completions broke the window law")
        shape = (len(launches), world.world_size)
        return Outcome(
            start_ps=arrays["launch_starts"].reshape(shape),
            end_ps=arrays["launch_ends"].reshape(shape),
            num_late=arrays["ranks"]["late"].copy(),
            num_events=int(h["events"]),
            num_rows=int(h["rows"]),
            port_bytes=arrays["ports"]["total_bytes"].reshape(world.world_size, -1).copy(),
        )

    def _reserve_stacks(self, launches: Sequence[Launch]) -> Stacks:
        fabric = self._world.fabric
        for launch in launches:
            if launch.num_warps > fabric.max_warps_per_sm:
                raise UsageError(
                    f"{launch.name} asks for {launch.num_warps} warps on an SM; "
                    f"{fabric.gpu} has room for {fabric.max_warps_per_sm}"
                )
        most = max((launch.num_blocks * launch.num_warps for launch in launches), default=1)
        if self._stacks is None or self._stacks.num_fibers < self._world.world_size * most:
            self._stacks = Stacks(self._world.world_size * most)
        return self._stacks
