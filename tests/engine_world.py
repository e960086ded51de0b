"""A small world for tests of the engine: windows, programs of `interpret`, exact costs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import kernels_for_tests as code
import numpy as np
import numpy.typing as npt

from comms.fabric import Fabric, load_fabric
from comms.fiber import Stacks
from comms.memory import POISON, Layout, Windows
from comms.sim.build import World, build_arrays
from comms.sim.engine import Engine, Launch, Options, Outcome
from comms.sim.loop import compiled_loop
from comms.sim.timeline import Recorder, Timeline
from kernels.isa import sim
from kernels.isa.entry import fiber_entry

#: Costs of the `h800` profile in picoseconds, written down again so that a wrong unit is seen.
WORD, L2, POLL, SYNC, FENCE, GAP = 10_000, 270_000, 300_000, 64_000, 500_000, 1_000_000
LATENCY, NIC_LATENCY, NIC_POST, NIC_MESSAGE = 750_000, 2_800_000, 300_000, 10_000
LINK_MBPS, NIC_MBPS, HBM_MBPS, SM_MBPS = 160_000, 47_000, 3_350_000, 40_000
WORD_BYTES, ACK_BYTES, PACKET_BYTES = 32, 19, 128

REGIONS = {"x": 1 << 16, "recv": 1 << 20, "flags": 4096, "out": 1 << 16}
#: Bytes of a row in memory and on the wire: an FP8 row of 7168 elements.
ROW, FULL = 64, 7392

Step = tuple[int, ...]
Programs = Mapping[tuple[int, int, int], list[Step]]


def cost(num_bytes: int, mbps: int) -> int:
    """Return the picoseconds that bytes take at a rate, rounded up."""
    return -(-num_bytes * 1_000_000 // mbps)


def through_sm(num_bytes: int) -> int:
    """Return when a lone warp's `ldst` copy has passed its SM."""
    return max(cost(num_bytes, SM_MBPS), 60_000 + -(-num_bytes // 4096) * 700_000)


def over_link(num_bytes: int) -> int:
    """Return how long bytes take from an idle egress port to memory on another rank."""
    return LATENCY + cost(num_bytes, LINK_MBPS)


def tick(arrival: int) -> int:
    """Return when a wait that began at 0 knows of a change that came at `arrival`."""
    return -(-arrival // POLL) * POLL + L2


WORD_OVER_LINK = over_link(WORD_BYTES)


@cache
def _compiled(name: str) -> Any:  # noqa: ANN401
    return fiber_entry(getattr(code, name), code.Params, sim)


def entry(name: str = "interpret") -> int:
    """Return the address of a kernel of `kernels_for_tests`, compiled."""
    return int(_compiled(name).address)


@dataclass
class Sandbox:
    """Ranks with four regions each, and one kernel that runs a program on every warp.

    Attributes:
        results: int64, where programs leave what they have read, by index.
    """

    num_nodes: int = 1
    ranks_per_node: int = 2
    fabric: Fabric = field(default_factory=lambda: load_fabric("h800"))
    row_bytes: tuple[int, int] = (ROW, FULL)
    slot_bytes: int = 1 << 14

    def __post_init__(self) -> None:
        self.world_size = self.num_nodes * self.ranks_per_node
        self.windows = Windows(Layout(REGIONS), self.world_size)
        self.results = np.full(64, -7, np.int64)
        self.engine = Engine(self.fabric, self.num_nodes, self.ranks_per_node, self.windows)
        for rank in range(self.world_size):
            self.view(rank, "recv")[:] = POISON
            self.view(rank, "x")[:] = np.arange(REGIONS["x"]) % 251
        self._kept: list[npt.NDArray[Any]] = []

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank."""
        return self.windows.view(rank, name, dtype)

    def at(self, name: str, distance: int = 0) -> int:
        """Return an offset of the window."""
        return self.windows.layout[name].offset + distance

    def flag(self, index: int) -> int:
        """Return the offset of a flag."""
        return self.at("flags", 8 * index)

    def addr(self, rank: int, name: str, distance: int = 0) -> int:
        """Return a local address."""
        return self.windows.base(rank) + self.at(name, distance)

    def result(self, index: int) -> int:
        """Return the address of a result."""
        return int(self.results.ctypes.data) + 8 * index

    def copy(self, source: int, rank: int, *, num_bytes: int = ROW, row: int = 0) -> Step:
        """Copy the head of a rank's `x` to place `row` of another's `recv`."""
        into = self.at("recv", row * ROW)
        return (code.COPY_ROW, rank, into, self.addr(source, "x"), num_bytes)

    def put(self, source: int, rank: int, *, num_rows: int = 1, row: int = 0, channel: int) -> Step:
        """Put the head of a rank's `x` to place `row` of another's `recv`."""
        into = self.at("recv", row * ROW)
        return (code.PUT_ROW, rank, into, self.addr(source, "x"), num_rows * ROW, channel)

    def put_rows(self, rank: int, rows: list[int], *, channel: int = 0) -> Step:
        """Put rows of the own rank's `x` to the head of another's `recv` by one request."""
        listed = np.array(rows, np.int32)
        self._kept.append(listed)
        address = int(listed.ctypes.data)
        into, base = self.at("recv"), self.at("x")
        return (code.PUT_ROWS, rank, into, len(rows), address, base, ROW, channel)

    def peek(self, rank: int, index: int, *, row: int = 0) -> Step:
        """Read the first word of a row of `recv` of the own rank now."""
        return (code.PEEK, self.addr(rank, "recv", row * ROW), self.result(index))

    def launch(self, programs: Programs) -> Launch:
        """Return a launch that runs a program on each (rank, sm, warp) named."""
        num_blocks = 1 + max(sm for _, sm, _ in programs)
        num_warps = 1 + max(warp for _, _, warp in programs)
        params = []
        for rank in range(self.world_size):
            table = np.zeros((num_blocks * num_warps, 2), np.int64)
            for (owner, sm, warp), steps in programs.items():
                if owner == rank and steps:
                    words = np.zeros((len(steps), code.STEP_WORDS), np.int64)
                    for index, step in enumerate(steps):
                        words[index, : len(step)] = step
                    table[sm * num_warps + warp] = words.ctypes.data, len(steps)
                    self._kept.append(words)
            self._kept.append(table)
            params.append([num_warps, table.ctypes.data])
        return Launch(
            name="test",
            entry=entry(),
            num_blocks=num_blocks,
            num_warps=num_warps,
            params=np.array(params, np.int64),
            row_bytes=self.row_bytes,
        )

    def options(self, **judged_after: int) -> Options:
        """Return options without skew."""
        return Options(
            slot_bytes=self.slot_bytes,
            transfers_per_warp=12,
            num_channels=4,
            judged_after=judged_after,
        )

    def run(self, programs: Programs, recorder: Recorder | None = None) -> Outcome:
        """Run one launch of programs."""
        return self.engine.run([self.launch(programs)], self.options(), recorder=recorder)

    def record(self, programs: Programs) -> Timeline:
        """Run one launch of programs and return what it recorded."""
        recorder = Recorder()
        self.run(programs, recorder)
        assert recorder.timeline is not None
        return recorder.timeline

    def stepwise(self, programs: Programs, num_events: int = 1) -> Iterator[tuple[int, Any]]:
        """Run programs, giving the time and the ports after every few events."""
        launch = self.launch(programs)
        world = World(self.fabric, self.world_size, self.ranks_per_node, self.windows)
        stacks = Stacks(self.world_size * launch.num_blocks * launch.num_warps)
        arrays = build_arrays(world, [launch], self.options(), stacks)
        header, run_slice = arrays["header"], compiled_loop()
        goes_on = True
        while goes_on:
            goes_on = run_slice(int(header.ctypes.data), num_events, 10**12)
            yield int(header["now"][0]), arrays["ports"]
        assert header["live_ranks"][0] == 0


def jain(values: npt.ArrayLike) -> float:
    """Return Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    array = np.asarray(values, float)
    return float(array.sum() ** 2 / (len(array) * (array**2).sum()))
