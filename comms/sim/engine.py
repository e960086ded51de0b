"""The engine as Python sees it: a world of ranks, launches to run, what came of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.errors import EpbenchError, TimeoutFailure
from comms.fabric import Fabric
from comms.fiber import STACK_BYTES, Stacks, start_address
from comms.memory import PAGE_BYTES, Windows, reserve
from comms.sim import report, state
from comms.sim.loop import compiled_loop

#: Events between two looks at the clock, the progress bar and Ctrl-C: a fraction of a second.
SLICE_EVENTS = 200_000
#: Virtual time and events after which a run that never settles is ended.
TIME_LIMIT_PS = 10**13
EVENT_LIMIT = 2 * 10**9
PS_PER_NS = 1000
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
        source: file of the kernel, for messages.
    """

    name: str
    entry: int
    num_blocks: int
    num_warps: int
    params: npt.NDArray[np.int64]
    row_bytes: tuple[int, int]
    source: str


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
        self.fabric = fabric
        self.world_size = num_nodes * ranks_per_node
        self.ranks_per_node = ranks_per_node
        self.windows = windows
        self._stacks: Stacks | None = None

    def run(
        self,
        launches: Sequence[Launch],
        options: Options,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Run launches in order on every rank, with no host between them.

        Args:
            launches: the kernels.
            options: how they are charged.
            on_progress: called now and then with (events so far, virtual picoseconds).

        Raises:
            TimeoutFailure: the kernels deadlock, or reach the limit of events or of virtual time.
            EpbenchError: a kernel raised, or left its regions.
        """
        run_slice = compiled_loop()
        arrays = self._build(launches, options)
        h = arrays["header"][0]
        address = int(arrays["header"].ctypes.data)
        while run_slice(address, SLICE_EVENTS, TIME_LIMIT_PS):
            if on_progress:
                on_progress(int(h["events"]), int(h["now"]))
            if h["events"] > EVENT_LIMIT:
                break
        assert self._stacks is not None
        if overflowed := self._stacks.overflowed():
            raise EpbenchError(
                f"a kernel needs more than {STACK_BYTES} bytes of stack: warp {overflowed[0]}"
            )
        if h["error"]:
            raise EpbenchError(report.describe_error(arrays, self.windows.layout, launches))
        if h["live_ranks"]:
            raise TimeoutFailure(report.describe_blocked(arrays, self.windows, launches))
        if violations := int(arrays["ports"]["violations"].sum()):
            raise AssertionError(f"{violations} completions broke the window law")
        shape = (len(launches), self.world_size)
        return Outcome(
            start_ps=arrays["launch_starts"].reshape(shape),
            end_ps=arrays["launch_ends"].reshape(shape),
            num_late=arrays["ranks"]["late"].copy(),
            num_events=int(h["events"]),
            num_rows=int(h["rows"]),
            port_bytes=arrays["ports"]["total_bytes"].reshape(self.world_size, -1).copy(),
        )

    def _build(self, launches: Sequence[Launch], options: Options) -> dict[str, npt.NDArray[Any]]:
        world, fabric = self.world_size, self.fabric
        blocks = max((launch.num_blocks for launch in launches), default=1)
        warps = max((launch.num_blocks * launch.num_warps for launch in launches), default=1)
        if self._stacks is None or self._stacks.num_fibers < world * warps:
            self._stacks = Stacks(world * warps)
        queued = sum(int(link.queue_bytes.value) for link in (fabric.nvlink, fabric.nic))
        num_transfers = world * (
            options.transfers_per_warp * warps + 2 * queued // int(fabric.sm.word_bytes.value)
        )
        slot_bytes = -(-max(options.slot_bytes, 64) // 64) * 64
        width = max((launch.params.shape[1] for launch in launches), default=1)
        params = np.zeros((len(launches), world, width), np.int64)
        for index, launch in enumerate(launches):
            params[index, :, : launch.params.shape[1]] = launch.params
        arrays: dict[str, npt.NDArray[Any]] = {
            "header": np.zeros(1, state.HEADER),
            "warps": np.zeros(world * warps, state.WARP),
            "blocks": np.zeros(world * blocks, state.BLOCK),
            "ports": self._ports(),
            "transfers": reserve(num_transfers * state.TRANSFER_BYTES).view(state.TRANSFER),
            "payload": reserve(num_transfers * slot_bytes),
            "heap": np.zeros(world * (warps + 2 * state.NUM_PORTS) + 16, state.EVENT),
            "buckets": np.full(max(1024, 2 * world * blocks), -1, np.int64)
            .repeat(2)
            .view(state.BUCKET),
            "ranks": self._ranks(options),
            "launches": np.array(
                [(one.entry, one.num_blocks, one.num_warps, *one.row_bytes) for one in launches],
                state.LAUNCH,
            ),
            "params": params,
            "launch_starts": np.zeros(len(launches) * world, np.int64),
            "launch_ends": np.zeros(len(launches) * world, np.int64),
            "channels": self._channels(options.num_channels),
            "main_context": np.zeros(16, np.int64),
            "scratch": np.zeros(max(1024, 4 * slot_bytes), np.uint8),
        }
        arrays["queues"] = np.full(2 * world * world * 4, -1, np.int64).view(state.QUEUE)
        arrays["pages"], arrays["regions"] = self._regions(options)
        h = arrays["header"][0]
        for name in (
            "warps",
            "blocks",
            "ports",
            "transfers",
            "payload",
            "heap",
            "buckets",
            "ranks",
        ):
            h[name] = arrays[name].ctypes.data
        for name in (
            "launches",
            "params",
            "launch_starts",
            "launch_ends",
            "channels",
            "main_context",
            "scratch",
            "queues",
        ):
            h[name] = arrays[name].ctypes.data
        h["pages"], h["regions"] = arrays["pages"].ctypes.data, arrays["regions"].ctypes.data
        h["num_pages"], h["window_bytes"] = len(arrays["pages"]), self.windows.layout.window_bytes
        h["num_buckets"], h["num_transfers"] = len(arrays["buckets"]), num_transfers
        h["world_size"], h["ranks_per_node"] = world, self.ranks_per_node
        h["num_launches"], h["params_words"] = len(launches), width
        h["blocks_per_rank"], h["warps_per_rank"] = blocks, warps
        h["stacks"], h["stack_bytes"] = self._stacks.base, STACK_BYTES
        h["start_address"], h["num_channels"] = start_address(), options.num_channels
        h["slot_bytes"], h["live_ranks"], h["free_transfer"] = (
            slot_bytes,
            world if launches else 0,
            -1,
        )
        h["rails"] = fabric.cross_rail == "forbidden"
        self._costs(h)
        arrays["ranks"]["live_warps"] = -1
        order = np.argsort(arrays["ranks"]["skew"], kind="stable")
        for place, rank in enumerate(order):
            arrays["heap"][place] = (
                arrays["ranks"]["skew"][rank],
                place,
                rank << 3 | state.EV_LAUNCH,
            )
        h["heap_size"] = h["seq"] = world if launches else 0
        return arrays

    def _ports(self) -> npt.NDArray[Any]:
        ports = np.zeros((self.world_size, state.NUM_PORTS), state.PORT)
        nvlink, nic, sm = self.fabric.nvlink, self.fabric.nic, self.fabric.sm
        for kind, link in ((state.NVL_OUT, nvlink), (state.NIC_OUT, nic)):
            for port in (ports[:, kind], ports[:, kind + 1]):
                port["mbps"] = round(link.payload_gbs.value * 1000)
                port["latency"] = round(link.latency_ns.value * PS_PER_NS)
                port["limit"] = int(link.queue_bytes.value)
        for kind in (state.HBM, state.HBM_DONE, state.L2, state.SIGNALS):
            ports[:, kind]["latency"] = round(sm.l2_ns.value * PS_PER_NS)
            ports[:, kind]["mbps"] = round(self.fabric.hbm_gbs.value * 1000)
            # The bytes that HBM moves in a microsecond: enough for every SM to have a row under
            # way.
            ports[:, kind]["limit"] = round(self.fabric.hbm_gbs.value * 1000)
        for name in ("head", "stalled_head", "ready_head", "request_head", "waiting_head"):
            ports[name] = -1
        return ports.reshape(-1)

    def _ranks(self, options: Options) -> npt.NDArray[Any]:
        ranks = np.zeros(self.world_size, state.RANK)
        ranks["base"] = [self.windows.base(rank) for rank in range(self.world_size)]
        ranks["any_head"] = -1
        if options.skew_ps is not None:
            ranks["skew"] = options.skew_ps
        return ranks

    def _channels(self, num_channels: int) -> npt.NDArray[Any]:
        # The lists of a channel are empty when zero: heads and tails hold a transfer's index plus
        # one.
        nodes = self.world_size // self.ranks_per_node
        count = self.world_size**2 * num_channels if nodes > 1 else 1
        return reserve(count * state.CHANNEL_BYTES).view(state.CHANNEL)

    def _regions(self, options: Options) -> tuple[npt.NDArray[np.int16], npt.NDArray[Any]]:
        layout = self.windows.layout
        pages = np.full(layout.window_bytes // PAGE_BYTES, -1, np.int16)
        regions = np.zeros(len(layout.regions), state.REGION)
        for index, region in enumerate(layout.regions.values()):
            regions[index] = (
                region.offset,
                region.num_bytes,
                options.judged_after.get(region.name, -1),
            )
            first = region.offset // PAGE_BYTES
            pages[first : first + -(-region.num_bytes // PAGE_BYTES)] = index
        return pages, regions

    def _costs(self, h: Any) -> None:
        sm, nvlink, nic = self.fabric.sm, self.fabric.nvlink, self.fabric.nic
        for name, mechanism in (("ldst", sm.ldst), ("bulk", sm.bulk)):
            rate = self.fabric.copy_gbs("ldst" if name == "ldst" else "bulk")
            h[f"{name}_copy_mbps"] = round(rate * 1000)
            h[f"{name}_flight"] = int(mechanism.bytes_in_flight.value)
            h[f"{name}_issue"] = round(mechanism.issue_ns.value * PS_PER_NS)
            h[f"{name}_load"] = round(mechanism.load_ns.value * PS_PER_NS)
        nanoseconds = {
            "word_issue": sm.word_issue_ns,
            "l2": sm.l2_ns,
            "poll": sm.poll_ns,
            "sync": sm.block_sync_ns,
            "fence": sm.fence_ns,
            "launch_gap": sm.launch_gap_ns,
            "layout": sm.layout_ns_per_token,
            "nvl_latency": nvlink.latency_ns,
            "nic_latency": nic.latency_ns,
            "nic_post": nic.post_ns,
            "nic_message": nic.message_ns,
        }
        for name, constant in nanoseconds.items():
            h[name] = round(constant.value * PS_PER_NS)
        h["reduce_mbps"] = round(sm.reduce_gbs.value * 1000)
        h["request_bytes"] = int(sm.read_request_bytes.value)
        h["request_span"] = int(sm.read_request_span_bytes.value)
        h["word_bytes"] = int(sm.word_bytes.value)
