"""`ring`: the protocol of DeepSeek-V3's kernels inside a node, told anew.

It restates what DeepEP's first version does (channels of two SMs, rings at the receivers, chunks)
so that its costs can be seen beside those of other protocols. The SM budget is fixed for a state:
every block has an epoch of its own.
"""

from collections.abc import Callable, Mapping

from kernels.knobs import Knob
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.ring.combine import CombineParams, combine
from kernels.ring.dispatch import DispatchParams, dispatch
from kernels.ring.notify import NotifyParams, notify
from kernels.rows import pad16
from kernels.shape import Shape

#: Warps of a block, divided among ranks (DeepEP: 768 threads).
BLOCK_WARPS = 24
#: DeepEP's defaults for dispatch and combine, world size to (chunk, ring) in rows.
_DISPATCH_ROWS = {2: (24, 256), 4: (6, 256), 8: (6, 256)}
_COMBINE_ROWS = {2: (10, 256), 4: (9, 256), 8: (4, 256)}


def _nearest(table: Mapping[int, tuple[int, int]], column: int) -> Callable[[Shape], int]:
    def value(shape: Shape) -> int:
        return table[min(table, key=lambda size: abs(size - shape.world_size))][column]

    return value


_RINGS = (32, 64, 128, 256, 512)
CHUNK_ROWS = Knob(
    "chunk_rows", "rows of a dispatched chunk", (*range(4, 33, 2),), _nearest(_DISPATCH_ROWS, 0)
)
RING_ROWS = Knob("ring_rows", "slots of a dispatch ring", _RINGS, _nearest(_DISPATCH_ROWS, 1))
COMBINE_CHUNK_ROWS = Knob(
    "combine_chunk_rows", "rows of a combine chunk", (*range(1, 17),), _nearest(_COMBINE_ROWS, 0)
)
COMBINE_RING_ROWS = Knob(
    "combine_ring_rows", "slots of a combine ring", _RINGS, _nearest(_COMBINE_ROWS, 1)
)
KNOBS = (CHUNK_ROWS, RING_ROWS, COMBINE_CHUNK_ROWS, COMBINE_RING_ROWS)


def _num_warps(shape: Shape) -> int:
    """Return the most warps, up to `BLOCK_WARPS`, that all ranks have equal parts of."""
    return BLOCK_WARPS // shape.world_size * shape.world_size


def settings(shape: Shape) -> dict[str, int]:
    """Return the parameters of the kernels of `ring`."""
    chunk, ring = CHUNK_ROWS.of(shape), RING_ROWS.of(shape)
    # A stream of fewer rows than its ring has slots leaves the rest unused.
    channel_rows = shape.num_tokens // (shape.num_sms // 2) + 1
    return {
        "ring_slots": min(ring, channel_rows),
        "back_slots": min(COMBINE_RING_ROWS.of(shape), channel_rows),
        # A quarter of the ring: senders seldom wait for credits, receivers seldom synchronise.
        "return_rows": chunk * max(ring // (4 * chunk), 1),
        "counts_bytes": pad16(4 * shape.world_size),
        "begins_bytes": pad16(4 * (shape.num_sms // 2 + 1)),
    }


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers of `ring`, name to bytes."""
    sizes = settings(shape)
    world, channels = shape.world_size, shape.num_sms // 2
    streams, workers = channels * world, channels * (_num_warps(shape) - 1)
    slots, counts, begins = sizes["ring_slots"], sizes["counts_bytes"], sizes["begins_bytes"]
    return {
        "notify_epoch": 8,
        "fresh_epoch": 8,
        "dispatch_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "counted": 8,
        "present": 8 * world,
        "exchanged": 8 * world,
        "tail": 8 * streams,
        "head": 8 * streams,
        "back_tail": 8 * streams,
        "back_head": 8 * streams,
        "entered": 8 * workers,
        "warp_counts": channels * _num_warps(shape) * counts,
        "channel_counts": channels * counts,
        "own_begins": world * begins,
        "begins": world * begins,
        "bases": counts,
        "send_head": 4 * world * max(shape.num_tokens, 1),
        "known": 8 * workers * world,
        "returned": 8 * streams,
        "slots": 4 * workers * world,
        "ring": streams * slots * shape.dispatch_row.stride_bytes,
        "ring_idx": 4 * streams * slots * shape.num_topk,
        "ring_weights": 4 * streams * slots * shape.num_topk,
        "back": streams * sizes["back_slots"] * shape.combine_row.stride_bytes,
    }


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if shape.num_nodes > 1:
        return "rings are filled by stores, which reach one node only"
    if shape.num_sms % 2:
        return f"num_sms must be even, got {shape.num_sms}: a channel is two SMs"
    if shape.world_size > BLOCK_WARPS:
        return (
            f"a block has {BLOCK_WARPS} warps, one or more for each rank: "
            f"at most {BLOCK_WARPS} ranks, got {shape.world_size}"
        )
    for chunk, ring in ((CHUNK_ROWS, RING_ROWS), (COMBINE_CHUNK_ROWS, COMBINE_RING_ROWS)):
        if chunk.of(shape) >= ring.of(shape):
            return (
                f"{chunk.name} must be less than {ring.name}, "
                f"got {chunk.of(shape)} and {ring.of(shape)}"
            )
    return None


_NOTIFY = KernelLaunch("notify", notify, NotifyParams, _num_warps)
_DISPATCH = KernelLaunch("dispatch", dispatch, DispatchParams, _num_warps)
_COMBINE = KernelLaunch("combine", combine, CombineParams, _num_warps)


def _launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    return (_NOTIFY, _DISPATCH) if op == "dispatch" else (_COMBINE,)


PROTOCOLS = (
    Protocol(
        kernel="ring",
        variant="chunked",
        summary="DeepSeek-V3's rings inside a node: half of the SMs send chunks, half receive",
        regions=regions,
        launches=_launches,
        refuses=_refuses,
        settings=settings,
        knobs=KNOBS,
    ),
)
