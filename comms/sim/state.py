"""State of the virtual-time engine: one header record and the structured arrays it points to.

Compiled code reaches the state by the header's address, which every fiber finds in its context
block. Times are int64 picoseconds, rates MB/s (so that a cost is `ceil(bytes * 10**6 / rate)` ps),
-1 is "none".
"""

from typing import Any

import numpy as np
from numba import carray

from comms.compiling import inner
from comms.raw import as_pointer, record_at

#: Ports of a rank. The four links are the fabric's; `HBM` serves local copies in order, `HBM_DONE`
#: and `L2` are where local row copies and local words wait until they are visible.
NVL_OUT, NVL_IN, NIC_OUT, NIC_IN, HBM, HBM_DONE, L2, NUM_PORTS = range(8)

#: States of a warp.
IDLE, READY, WAIT_GE, WAIT_ANY, BLOCK_SYNC, GROUP_SYNC, FENCE, ADMIT, READS, REPLY, PUTS, DONE = (
    range(12)
)
STATE_NAMES = (
    "its start",
    "its turn",
    "a flag",
    "one of several flags",
    "its block",
    "its group",
    "acknowledgements",
    "room in a full queue",
    "the rows it reads",
    "the reply to a fetch_add",
    "its puts to arrive",
    "nothing",
)

#: Kinds of a transfer; `SEEN` is a word that was seen before it arrived.
ROW, TOPK, STORE, ADD, FETCH_ADD, READ_REQUEST, READ_DATA, PUT, ROW_LATE, SIGNAL, SEEN = range(11)

#: Kinds of an event.
EV_WARP, EV_EGRESS, EV_ARRIVE, EV_LAUNCH = range(4)

#: Errors that stop the engine.
(
    OK,
    OUT_OF_BOUNDS,
    TOO_LONG,
    NOT_REACHABLE,
    EXCEPTION,
    POOL_EMPTY,
    BAD_RANK,
    BAD_CHANNEL,
    BAD_GROUP,
    TOO_MANY_ROWS,
) = range(10)


def _record(*fields: str) -> np.dtype[Any]:
    return np.dtype([(field, np.int64) for field in fields])


HEADER = _record(
    *("warps", "num_warps", "blocks", "num_blocks", "groups", "ports", "transfers"),
    *("num_transfers", "payload", "heap", "heap_size", "buckets", "num_buckets"),
    *("ranks", "world_size", "launches", "num_launches", "params", "params_words", "pages"),
    *("num_pages", "regions", "channels", "num_channels", "queues"),
    *("main_context", "stacks", "stack_bytes", "start_address", "warps_per_rank"),
    *("rails", "scratch", "launch_starts", "launch_ends"),
    *("blocks_per_rank", "ranks_per_node", "memory", "window_bytes"),
    *("now", "seq", "events", "slice_end", "free_transfer", "fresh_transfer", "live_ranks"),
    *("error", "error_warp", "error_a", "error_b", "rows"),
    *("slot_bytes", "free_slot", "fresh_slot"),
    *("ldst_copy_mbps", "ldst_flight", "ldst_issue", "ldst_load"),
    *("bulk_copy_mbps", "bulk_flight", "bulk_issue", "bulk_load"),
    *("word_issue", "l2", "poll", "sync", "fence", "launch_gap", "reduce_mbps", "layout"),
    *("request_bytes", "request_span", "ack_bytes", "packet_bytes", "word_bytes"),
    *("nvl_latency", "nic_latency", "nic_post", "nic_message"),
    *("records", "num_records", "max_records", "num_dropped"),
)
WARP = _record(
    *("rank", "block", "index", "state", "wait_offset", "wait_value", "wait_count", "wait_stride"),
    "wait_values",
    *("poll_base", "line", "next", "outstanding", "last_ack", "pending_reads", "reply", "debt"),
    *("unreleased", "stage", "context", "group", "record"),
)
BLOCK = _record(
    *("sm", "first_warp", "num_warps", "live_warps", "arrived", "sync_head", "sync_tail"),
    "generation",
    *("old_outstanding", "old_ack", "num_fencing", "fence_head", "copy_free", "reduce_free"),
    *("words_at",),
)
GROUP = _record("arrived", "sync_head", "sync_tail", "generation", "old_outstanding", "old_ack")
PORT = _record(
    *("mbps", "latency", "limit", "queued", "head", "tail", "busy", "service_bytes", "free_at"),
    *("stalled_head", "stalled_tail", "ready_head", "ready_tail", "request_head", "request_tail"),
    *("waiting_head", "waiting_tail", "total_bytes", "busy_ps"),
    *("meter_at", "meter_level", "meter_burst", "violations"),
)
TRANSFER = _record(
    *("kind", "next", "src_rank", "dst_rank", "offset", "offset2", "bytes", "num_bytes", "slot"),
    *("source", "warp", "generation", "value", "key", "time", "port", "room", "after"),
    *("group_generation", "issued", "left", "served"),
)
RANK = _record(
    *("launch", "live_warps", "outstanding", "last_ack", "late", "any_head"),
    *("base", "launch_start", "skew", "row_stride", "row_full", "recorded"),
)
LAUNCH = _record("entry", "num_blocks", "num_warps", "row_stride", "row_full")
REGION = _record("offset", "num_bytes", "judged_after")
CHANNEL = _record("posted", "arrived", "arrived_at", "head", "tail", "waiter")
EVENT = _record("time", "seq", "code")
BUCKET = _record("head", "tail")
QUEUE = _record("head", "tail", "next", "port")

WARP_BYTES, BLOCK_BYTES, GROUP_BYTES, PORT_BYTES, TRANSFER_BYTES, RANK_BYTES = (
    dtype.itemsize for dtype in (WARP, BLOCK, GROUP, PORT, TRANSFER, RANK)
)
LAUNCH_BYTES, REGION_BYTES, CHANNEL_BYTES, EVENT_BYTES, BUCKET_BYTES, QUEUE_BYTES = (
    dtype.itemsize for dtype in (LAUNCH, REGION, CHANNEL, EVENT, BUCKET, QUEUE)
)
#: Named barriers of a block; 0 is never used, it would be the block's own.
NUM_GROUPS = 16
#: Regions start at multiples of this, so that a page tells its region.
PAGE_SHIFT = 12


@inner
def header(e: int) -> Any:
    """Return the header of the engine at address `e`."""
    return record_at(e, HEADER)


@inner
def warp_at(e: int, warp: int) -> Any:
    """Return the record of a warp."""
    return record_at(record_at(e, HEADER).warps + warp * WARP_BYTES, WARP)


@inner
def block_at(e: int, block: int) -> Any:
    """Return the record of a block."""
    return record_at(record_at(e, HEADER).blocks + block * BLOCK_BYTES, BLOCK)


@inner
def group_at(e: int, group: int) -> Any:
    """Return the record of a named barrier, NUM_GROUPS for each block."""
    return record_at(record_at(e, HEADER).groups + group * GROUP_BYTES, GROUP)


@inner
def port_at(e: int, port: int) -> Any:
    """Return the record of a port."""
    return record_at(record_at(e, HEADER).ports + port * PORT_BYTES, PORT)


@inner
def transfer_at(e: int, transfer: int) -> Any:
    """Return the record of a transfer."""
    return record_at(record_at(e, HEADER).transfers + transfer * TRANSFER_BYTES, TRANSFER)


@inner
def rank_at(e: int, rank: int) -> Any:
    """Return the record of a rank."""
    return record_at(record_at(e, HEADER).ranks + rank * RANK_BYTES, RANK)


@inner
def region_at(e: int, rank_offset: int) -> int:
    """Return the region that an offset of the window lies in, -1 for none."""
    h = record_at(e, HEADER)
    if rank_offset < 0 or rank_offset >= h.window_bytes:
        return -1
    return carray(as_pointer(h.pages), (h.num_pages,), np.int16)[rank_offset >> PAGE_SHIFT]


@inner
def cost(num_bytes: int, mbps: int) -> int:
    """Return the picoseconds that `num_bytes` take at `mbps`, rounded up."""
    return (num_bytes * 1000000 + mbps - 1) // mbps


@inner
def wire_bytes(e: int, rank: int, num_bytes: int) -> int:
    """Return what `num_bytes` of rows cost in a rank's launch: each counts as a whole row."""
    r = rank_at(e, rank)
    return num_bytes + num_bytes // r.row_stride * (r.row_full - r.row_stride)
