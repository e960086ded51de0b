"""The arrays of a run as compiled code finds them: from a fabric, windows and launches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.fabric import Constant, Fabric
from comms.fiber import STACK_BYTES, Stacks, start_address
from comms.memory import PAGE_BYTES, Layout, Windows, reserve
from comms.sim import state

if TYPE_CHECKING:
    from comms.sim.engine import Launch, Options

Arrays = dict[str, npt.NDArray[Any]]
PS_PER_NS = 1000


@dataclass(frozen=True, slots=True)
class World:
    """What stays the same from run to run.

    Attributes:
        fabric: rates and costs.
        world_size: ranks.
        ranks_per_node: ranks of a node.
        windows: the ranks' memory.
    """

    fabric: Fabric
    world_size: int
    ranks_per_node: int
    windows: Windows


def build_arrays(
    world: World, launches: Sequence["Launch"], options: "Options", stacks: Stacks
) -> Arrays:
    """Return the state of a run that has not begun, by name of the header's field."""
    fabric, size = world.fabric, world.world_size
    blocks = max((launch.num_blocks for launch in launches), default=1)
    warps = max((launch.num_blocks * launch.num_warps for launch in launches), default=1)
    queued = sum(int(link.queue_bytes.value) for link in (fabric.nvlink, fabric.nic))
    words = 2 * queued // int(fabric.sm.word_bytes.value)
    words += int(fabric.nic.send_queue_requests.value)
    num_transfers = size * (options.transfers_per_warp * warps + words)
    slot_bytes = -(-max(options.slot_bytes, 64) // 64) * 64
    num_buckets = max(1024, 2 * size * blocks)
    params = _params(launches, size)
    arrays: Arrays = {
        "warps": np.zeros(size * warps, state.WARP),
        "blocks": np.zeros(size * blocks, state.BLOCK),
        "groups": np.zeros(size * blocks * state.NUM_GROUPS, state.GROUP),
        "ports": _ports(fabric, size),
        "queues": np.full(4 * 2 * size * size, -1, np.int64).view(state.QUEUE),
        "transfers": reserve(num_transfers * state.TRANSFER_BYTES).view(state.TRANSFER),
        "payload": reserve(num_transfers * slot_bytes),
        # A warp has one event at most, a port one of each of its two kinds, a rank one launch.
        "heap": np.zeros(size * (warps + 2 * state.NUM_PORTS + 1), state.EVENT),
        "buckets": np.full(2 * num_buckets, -1, np.int64).view(state.BUCKET),
        "ranks": _ranks(world, options),
        "launches": np.array(
            [(one.entry, one.num_blocks, one.num_warps, *one.row_bytes) for one in launches],
            state.LAUNCH,
        ),
        "params": params,
        "launch_starts": np.zeros(len(launches) * size, np.int64),
        "launch_ends": np.zeros(len(launches) * size, np.int64),
        "channels": _channels(world, options.num_channels),
        "main_context": np.zeros(16, np.int64),
        "scratch": np.zeros(max(1024, 4 * slot_bytes), np.uint8),
        "pages": _pages(world.windows.layout),
        "regions": _regions(world.windows.layout, options.judged_after),
    }
    header = np.zeros(1, state.HEADER)
    h = header[0]
    for name, array in arrays.items():
        h[name] = array.ctypes.data
    h["num_pages"], h["window_bytes"] = len(arrays["pages"]), world.windows.layout.window_bytes
    h["num_buckets"], h["num_transfers"] = num_buckets, num_transfers
    h["world_size"], h["ranks_per_node"] = size, world.ranks_per_node
    h["num_launches"], h["params_words"] = len(launches), params.shape[2]
    h["blocks_per_rank"], h["warps_per_rank"] = blocks, warps
    h["stacks"], h["stack_bytes"], h["start_address"] = stacks.base, STACK_BYTES, start_address()
    h["num_channels"], h["slot_bytes"] = options.num_channels, slot_bytes
    h["free_transfer"] = -1
    h["rails"] = fabric.cross_rail == "forbidden"
    for name, value in _costs(fabric).items():
        h[name] = value
    if launches:
        _schedule_first(arrays, h)
    return {**arrays, "header": header}


def _schedule_first(arrays: Arrays, h: Any) -> None:
    skew = arrays["ranks"]["skew"]
    h["live_ranks"] = h["heap_size"] = h["seq"] = len(skew)
    # In order of time, they are a heap.
    for place, rank in enumerate(np.argsort(skew, kind="stable")):
        arrays["heap"][place] = (skew[rank], place, rank << 3 | state.EV_LAUNCH)


def _params(launches: Sequence["Launch"], world_size: int) -> npt.NDArray[np.int64]:
    width = max((launch.params.shape[1] for launch in launches), default=1)
    params = np.zeros((len(launches), world_size, width), np.int64)
    for index, launch in enumerate(launches):
        params[index, :, : launch.params.shape[1]] = launch.params
    return params


def _ports(fabric: Fabric, world_size: int) -> npt.NDArray[Any]:
    ports = np.zeros((world_size, state.NUM_PORTS), state.PORT)
    for kind, link in ((state.NVL_OUT, fabric.nvlink), (state.NIC_OUT, fabric.nic)):
        for port in (ports[:, kind], ports[:, kind + 1]):
            port["mbps"] = round(link.payload_gbs.value * 1000)
            port["latency"] = _picoseconds(link.latency_ns)
            port["limit"] = int(link.queue_bytes.value)
    ports[:, state.NIC_OUT]["limit"] = int(fabric.nic.send_queue_requests.value)
    hbm_mbps = round(fabric.hbm_gbs.value * 1000)
    for kind in (state.HBM, state.HBM_DONE, state.L2):
        ports[:, kind]["latency"] = _picoseconds(fabric.sm.l2_ns)
        ports[:, kind]["mbps"] = hbm_mbps
        # The bytes that HBM moves in a microsecond: enough for every SM to have a row under way.
        ports[:, kind]["limit"] = hbm_mbps
    for name in ("head", "stalled_head", "ready_head", "request_head", "waiting_head"):
        ports[name] = -1
    return ports.reshape(-1)


def _ranks(world: World, options: "Options") -> npt.NDArray[Any]:
    ranks = np.zeros(world.world_size, state.RANK)
    ranks["base"] = [world.windows.base(rank) for rank in range(world.world_size)]
    ranks["any_head"] = ranks["live_warps"] = -1
    if options.skew_ps is not None:
        ranks["skew"] = options.skew_ps
    return ranks


def _channels(world: World, num_channels: int) -> npt.NDArray[Any]:
    # The lists of a channel are empty when zero: they hold a transfer's or a warp's index plus one.
    has_network = world.world_size > world.ranks_per_node
    count = world.world_size**2 * num_channels if has_network else 1
    return reserve(count * state.CHANNEL_BYTES).view(state.CHANNEL)


def _pages(layout: Layout) -> npt.NDArray[np.int16]:
    pages = np.full(layout.window_bytes // PAGE_BYTES, -1, np.int16)
    for index, region in enumerate(layout.regions.values()):
        first = region.offset // PAGE_BYTES
        pages[first : first + -(-region.num_bytes // PAGE_BYTES)] = index
    return pages


def _regions(layout: Layout, judged_after: Mapping[str, int]) -> npt.NDArray[Any]:
    rows = [(one.offset, one.num_bytes, judged_after.get(one.name, -1)) for one in layout]
    return np.array(rows, state.REGION)


def _picoseconds(constant: Constant) -> int:
    return round(constant.value * PS_PER_NS)


def _costs(fabric: Fabric) -> dict[str, int]:
    sm, nvlink, nic = fabric.sm, fabric.nvlink, fabric.nic
    return {
        "ldst_copy_mbps": round(fabric.copy_gbs("ldst") * 1000),
        "ldst_flight": int(sm.ldst.bytes_in_flight.value),
        "ldst_issue": _picoseconds(sm.ldst.issue_ns),
        "ldst_load": _picoseconds(sm.ldst.load_ns),
        "bulk_copy_mbps": round(fabric.copy_gbs("bulk") * 1000),
        "bulk_flight": int(sm.bulk.bytes_in_flight.value),
        "bulk_issue": _picoseconds(sm.bulk.issue_ns),
        "bulk_load": _picoseconds(sm.bulk.load_ns),
        "word_issue": _picoseconds(sm.word_issue_ns),
        "l2": _picoseconds(sm.l2_ns),
        "poll": _picoseconds(sm.poll_ns),
        "sync": _picoseconds(sm.block_sync_ns),
        "fence": _picoseconds(sm.fence_ns),
        "launch_gap": _picoseconds(sm.launch_gap_ns),
        "layout": _picoseconds(sm.layout_ns_per_token),
        "reduce_mbps": round(sm.reduce_gbs.value * 1000),
        "request_bytes": int(sm.read_request_bytes.value),
        "request_span": int(sm.read_request_span_bytes.value),
        "ack_bytes": int(sm.write_ack_bytes.value),
        "packet_bytes": int(sm.write_packet_bytes.value),
        "word_bytes": int(sm.word_bytes.value),
        "nvl_latency": _picoseconds(nvlink.latency_ns),
        "nic_latency": _picoseconds(nic.latency_ns),
        "nic_post": _picoseconds(nic.post_ns),
        "nic_message": _picoseconds(nic.message_ns),
    }
