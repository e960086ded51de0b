"""`nccl_like`: the baseline, a framework's pack and unpack around an all-to-all-v in the manner of
NCCL."""

from kernels import packing
from kernels.nccl_like import constants
from kernels.nccl_like.alltoallv import AlltoallvParams, alltoallv_combine, alltoallv_dispatch
from kernels.nccl_like.counts import CountsParams, counts
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

#: Pairs of warps of a channel, one that sends and one that receives.
NUM_PAIRS = 8
CHANNEL_WARPS = 2 * NUM_PAIRS


def _slot_bytes(shape: Shape) -> int:
    rows = (shape.dispatch_row, shape.combine_row)
    moved = [max(constants.CHUNK_BYTES // row.full_bytes, 1) * row.stride_bytes for row in rows]
    return max(*moved, constants.IDS_CHUNK_BYTES)


def _regions(shape: Shape, *, by_expert: bool) -> dict[str, int]:
    world = shape.world_size
    streams = shape.num_sms * NUM_PAIRS
    slots = streams * constants.NUM_SLOTS * _slot_bytes(shape)
    row = packing.column_bytes(shape, by_expert=by_expert)
    return {
        **packing.regions(shape, by_expert=by_expert),
        "begins_stage": shape.ranks_per_node * row,
        "peer_begins": world * row,
        "counts_epoch": 8,
        "exchange_epoch": 8 * shape.num_sms,
        "hello": 8 * world,
        "head": 8 * world * streams,
        "tail": 8 * world * streams,
        "fifo": world * slots,
        "net_fifo": shape.ranks_per_node * slots if shape.num_nodes > 1 else 16,
    }


def _settings(shape: Shape, *, by_expert: bool) -> dict[str, int | str]:
    return {
        **packing.settings(shape, by_expert=by_expert),
        "begins_bytes": packing.column_bytes(shape, by_expert=by_expert),
        "num_slots": constants.NUM_SLOTS,
        "slot_bytes": _slot_bytes(shape),
        "chunk_bytes": constants.CHUNK_BYTES,
        "base_ns": constants.BASE_NS,
        "step_ns": constants.STEP_NS,
        "num_channels": 2 * shape.ranks_per_node * shape.num_sms * NUM_PAIRS,
        "max_copy_bytes": _slot_bytes(shape),
    }


_COUNTS = KernelLaunch("counts", counts, CountsParams, packing.PACK_WARPS)
_ALLTOALLV = KernelLaunch("alltoallv", alltoallv_dispatch, AlltoallvParams, CHANNEL_WARPS)
_ALLTOALLV_BACK = KernelLaunch("alltoallv_back", alltoallv_combine, AlltoallvParams, CHANNEL_WARPS)


def _launches(op: Op, form: Form, *, by_expert: bool) -> tuple[KernelLaunch, ...]:
    if op == "combine":
        return (*((packing.PACK_BACK,) if by_expert else ()), _ALLTOALLV_BACK, packing.REDUCE)
    before = (packing.LAYOUT, packing.PACK, _COUNTS) if form == "fresh" else (packing.PACK,)
    return (*before, _ALLTOALLV, *((packing.UNPACK,) if by_expert else ()))


DEDUP = Protocol(
    kernel="nccl_like",
    variant="dedup",
    summary="model of NCCL's all-to-all-v, a row per (token, rank): the strongest baseline",
    regions=lambda shape: _regions(shape, by_expert=False),
    launches=lambda op, form: _launches(op, form, by_expert=False),
    settings=lambda shape: _settings(shape, by_expert=False),
    route="pxn",
    is_baseline=True,
)
SELECTION = Protocol(
    kernel="nccl_like",
    variant="selection",
    summary="model of NCCL's all-to-all-v, a row per (token, expert): what frameworks do",
    regions=lambda shape: _regions(shape, by_expert=True),
    launches=lambda op, form: _launches(op, form, by_expert=True),
    settings=lambda shape: _settings(shape, by_expert=True),
    granularity="selection",
    route="pxn",
    is_baseline=True,
)
PROTOCOLS = (DEDUP, SELECTION)
