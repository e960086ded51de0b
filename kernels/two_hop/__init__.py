"""`two_hop`: one copy per node over the rail, no second ring, no receiver SMs.

`rail` puts rows by the NIC as it goes along; `staged` leaves the first hop to the device's library.
The SM budget is fixed for a state: flags count blocks, and every block has an epoch of its own.
"""

from kernels.isa import MOST_SEGMENTS
from kernels.knobs import Knob, too_many_warps
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.rows import pad16
from kernels.shape import Shape
from kernels.two_hop.combine import combine
from kernels.two_hop.dispatch import dispatch
from kernels.two_hop.params import CombineParams, DispatchParams
from kernels.two_hop.staged import STAGED

# One warp serves a stream: two nodes have few, and get as many reducers as streams.
CHANNEL_WARPS = Knob(
    "channel_warps",
    "warps of a block that post, serve the own node or receive",
    (2, 4, 8, 10, 12),
    lambda shape: 10 if shape.num_nodes == 2 else 8,
)
FORWARD_WARPS = Knob(
    "forward_warps",
    "warps of a block that forward",
    (8, 12, 16, 24),
    lambda shape: 12 if shape.num_nodes == 2 else 16,
)
REDUCE_WARPS = Knob(
    "reduce_warps",
    "warps of a block that sum rows of a node",
    (16, 20, 24),
    lambda shape: 20 if shape.num_nodes == 2 else 24,
)
CHUNK_ROWS = Knob("chunk_rows", "rows of a dispatched chunk, one request each", (1, 2, 4, 8), 8)
RING_ROWS = Knob("ring_rows", "rows of a dispatched stream's ring", (8, 16, 32, 64), 16)
COMBINE_CHUNK_ROWS = Knob("combine_chunk_rows", "sums of a chunk, one signal each", (1, 2, 4), 4)
COMBINE_RING_ROWS = Knob("combine_ring_rows", "sums of a stream's ring", (4, 8, 16), 8)
KNOBS = (
    CHANNEL_WARPS,
    FORWARD_WARPS,
    REDUCE_WARPS,
    CHUNK_ROWS,
    RING_ROWS,
    COMBINE_CHUNK_ROWS,
    COMBINE_RING_ROWS,
)


def _record_bytes(shape: Shape) -> int:
    return pad16(4 * shape.ranks_per_node + 8 * shape.num_topk)


def _kept_bytes(shape: Shape) -> int:
    return 8 + 8 * shape.ranks_per_node


def _num_channels(shape: Shape) -> int:
    return shape.num_sms * CHANNEL_WARPS.of(shape)


def _channel_rows(shape: Shape) -> int:
    """Return the most tokens of a channel."""
    return shape.num_tokens // _num_channels(shape) + 1


def _streams_per_warp(shape: Shape) -> int:
    warps = shape.num_sms * min(FORWARD_WARPS.of(shape), REDUCE_WARPS.of(shape))
    return -(-shape.num_nodes * _num_channels(shape) // warps)


def _dispatch_warps(shape: Shape) -> int:
    return 2 * CHANNEL_WARPS.of(shape) + FORWARD_WARPS.of(shape)


def _combine_warps(shape: Shape) -> int:
    return CHANNEL_WARPS.of(shape) + REDUCE_WARPS.of(shape)


def settings(shape: Shape) -> dict[str, int]:
    """Return the parameters of the kernels of `two_hop`."""
    return {
        "num_nodes": shape.num_nodes,
        "num_reducers": shape.num_sms * REDUCE_WARPS.of(shape),
        "num_forwarders": shape.num_sms * FORWARD_WARPS.of(shape),
        "num_streams": shape.num_nodes * _num_channels(shape),
        "num_remote_streams": (shape.num_nodes - 1) * _num_channels(shape),
        "num_streams_per_warp": _streams_per_warp(shape),
        "channel_rows": _channel_rows(shape),
        "record_bytes": _record_bytes(shape),
        "kept_bytes": _kept_bytes(shape),
        "counts_bytes": pad16(4 * shape.world_size),
        "channels_bytes": pad16(4 * _num_channels(shape)),
        "num_channels": 2 * _num_channels(shape) + 1,
        "max_copy_bytes": max(
            CHUNK_ROWS.of(shape) * _record_bytes(shape), pad16(4 * _num_channels(shape))
        ),
    }


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers of `two_hop`, name to bytes."""
    sizes = settings(shape)
    world, nodes, channels = shape.world_size, shape.num_nodes, _num_channels(shape)
    streams, rows = nodes * channels, sizes["channel_rows"]
    workers = shape.num_sms * max(_dispatch_warps(shape), _combine_warps(shape))
    ring, back = streams * RING_ROWS.of(shape), streams * COMBINE_RING_ROWS.of(shape)
    counts, by_channel = sizes["counts_bytes"], sizes["channels_bytes"]
    return {
        "dispatch_epoch": 8 * shape.num_sms,
        "fresh_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "counted": 8,
        "grant": 8 * shape.ranks_per_node,
        "rail_hello": 8 * nodes,
        "hello": 8 * world,
        "done": 8,
        "ready": 8 * shape.ranks_per_node,
        "read": 8,
        "tail": 8 * streams,
        "credit": 8 * streams,
        "back_tail": 8 * streams,
        "back_credit": 8 * streams,
        "sent": 8 * streams,
        "received": 8 * streams,
        "reduced": 8 * streams,
        "summed": 8 * streams,
        "worker_counts": channels * counts,
        "own_counts": counts,
        "node_counts": nodes * by_channel,
        "counts": 2 * world * counts,
        "incoming": 2 * nodes * by_channel,
        "cursors": 2 * channels * counts,
        "lists": workers * (16 * shape.num_topk + 4 * nodes),
        "wanted": 8 * workers * sizes["num_streams_per_warp"],
        "places": 4 * workers * sizes["num_streams_per_warp"],
        "expected": 4 * streams,
        "kept": streams * rows * sizes["kept_bytes"],
        "records": streams * rows * sizes["record_bytes"],
        "pending": 4 * streams * CHUNK_ROWS.of(shape),
        "ring": ring * shape.dispatch_row.stride_bytes,
        "ring_records": ring * sizes["record_bytes"],
        "back": back * shape.combine_row.stride_bytes,
        "stage": back * shape.combine_row.stride_bytes,
    }


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if shape.num_nodes == 1:
        return "one node needs one hop: use direct"
    for ring, chunk in ((RING_ROWS, CHUNK_ROWS), (COMBINE_RING_ROWS, COMBINE_CHUNK_ROWS)):
        if ring.of(shape) % chunk.of(shape):
            return (
                f"{ring.name} must be a multiple of {chunk.name}, "
                f"got {ring.of(shape)} and {chunk.of(shape)}"
            )
    if CHUNK_ROWS.of(shape) > MOST_SEGMENTS:
        return (
            f"{CHUNK_ROWS.name} must be at most {MOST_SEGMENTS}, the rows of a request, "
            f"got {CHUNK_ROWS.of(shape)}"
        )
    channels, forward, reduce = CHANNEL_WARPS.name, FORWARD_WARPS.name, REDUCE_WARPS.name
    return too_many_warps(f"2 x {channels} + {forward}", _dispatch_warps(shape)) or too_many_warps(
        f"{channels} + {reduce}", _combine_warps(shape)
    )


def _launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (KernelLaunch("dispatch", dispatch, DispatchParams, _dispatch_warps),)
    return (KernelLaunch("combine", combine, CombineParams, _combine_warps),)


PROTOCOLS = (
    Protocol(
        kernel="two_hop",
        variant="rail",
        summary="one copy per node over the rail, forwarded straight into final places; combine "
        "adds inside each node first",
        regions=regions,
        launches=_launches,
        refuses=_refuses,
        settings=settings,
        knobs=KNOBS,
        route="rail",
        pulls=True,
        hops=2,
    ),
    STAGED,
)
