"""`nccl_like`: the baseline, a framework's pack and unpack around an all-to-all-v in the manner of
NCCL."""

from kernels.nccl_like import constants
from kernels.nccl_like.alltoallv import AlltoallvParams, alltoallv_combine, alltoallv_dispatch
from kernels.nccl_like.counts import CountsParams, counts
from kernels.nccl_like.layout import LayoutParams, PackParams, layout, pack
from kernels.nccl_like.unpack import ReduceParams, UnpackParams, pack_back, reduce, unpack
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

#: Warps of a block of the packing kernels, which run on every SM, and pairs of warps of a channel.
PACK_WARPS, NUM_PAIRS = 8, 8
#: SMs that no GPU here exceeds: the packing kernels' tables have a row for each.
MAX_SMS = 160
CHANNEL_WARPS = 2 * NUM_PAIRS


def _num_columns(shape: Shape, by_expert: bool) -> int:
    return shape.world_size * (shape.experts_per_rank if by_expert else 1)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16


def _slot_bytes(shape: Shape) -> int:
    rows = (shape.dispatch_row, shape.combine_row)
    moved = [max(constants.CHUNK_BYTES // row.full_bytes, 1) * row.stride_bytes for row in rows]
    return max(*moved, constants.IDS_CHUNK_BYTES)


def _regions(shape: Shape, by_expert: bool) -> dict[str, int]:
    world, tokens = shape.world_size, max(shape.num_tokens, 1)
    columns = _num_columns(shape, by_expert)
    copies = shape.num_topk if by_expert else min(shape.num_topk, world)
    streams = shape.num_sms * NUM_PAIRS
    ids = 4 if by_expert else 4 * shape.num_topk
    rows = tokens * copies
    slots = streams * constants.NUM_SLOTS * _slot_bytes(shape)
    row = _padded(4 * (columns + 1))
    received = world * tokens * min(shape.num_topk, shape.experts_per_rank) if by_expert else 0
    return {
        "worker_counts": MAX_SMS * PACK_WARPS * row,
        "block_counts": MAX_SMS * row,
        "block_totals": 2 * MAX_SMS * row,
        "cursors": MAX_SMS * PACK_WARPS * row,
        "begins": row,
        "begins_stage": shape.ranks_per_node * row,
        "peer_begins": world * row,
        "send_begins": 4 * (world + 1),
        "recv_begins": 4 * (world + 1),
        "pair_begins": 4 * columns,
        "send_num": 4 * tokens,
        "send_columns": 4 * tokens * shape.num_topk,
        "send_rows": 4 * tokens * shape.num_topk,
        "send_weights": 4 * tokens * shape.num_topk,
        "send_x": rows * shape.dispatch_row.stride_bytes,
        "send_idx": rows * ids,
        "send_topk_weights": rows * ids,
        "stage_y": rows * shape.combine_row.stride_bytes,
        "stage_x": max(received * shape.dispatch_row.stride_bytes, 16),
        "stage_idx": max(4 * received, 16),
        "stage_weights": max(4 * received, 16),
        "back_y": max(received * shape.combine_row.stride_bytes, 16),
        "counts_epoch": 8,
        "exchange_epoch": 8 * shape.num_sms,
        "hello": 8 * world,
        "head": 8 * world * streams,
        "tail": 8 * world * streams,
        "fifo": world * slots,
        "net_fifo": shape.ranks_per_node * slots if shape.num_nodes > 1 else 16,
    }


def _settings(shape: Shape, by_expert: bool) -> dict[str, int | str]:
    columns = _num_columns(shape, by_expert)
    row = _padded(4 * (columns + 1))
    return {
        "by_expert": int(by_expert),
        "num_columns": columns,
        "column_bytes": row,
        "begins_bytes": row,
        "counts_per_rank": shape.experts_per_rank if by_expert else 1,
        "ids_bytes": 4 if by_expert else 4 * shape.num_topk,
        "num_slots": constants.NUM_SLOTS,
        "slot_bytes": _slot_bytes(shape),
        "chunk_bytes": constants.CHUNK_BYTES,
        "base_ns": constants.BASE_NS,
        "step_ns": constants.STEP_NS,
        "num_channels": 2 * shape.ranks_per_node * shape.num_sms * NUM_PAIRS,
        "max_copy_bytes": _slot_bytes(shape),
        # Where the exchange reads and writes.
        "into_x": "stage_x" if by_expert else "recv_x",
        "into_idx": "stage_idx" if by_expert else "recv_topk_idx",
        "into_weights": "stage_weights" if by_expert else "recv_topk_weights",
        "from_y": "back_y" if by_expert else "y",
        "into_y": "stage_y",
    }


_LAYOUT = KernelLaunch("layout", layout, LayoutParams, PACK_WARPS, "all")
_PACK = KernelLaunch("pack", pack, PackParams, PACK_WARPS, "all")
_COUNTS = KernelLaunch("counts", counts, CountsParams, PACK_WARPS)
_ALLTOALLV = KernelLaunch("alltoallv", alltoallv_dispatch, AlltoallvParams, CHANNEL_WARPS)
_UNPACK = KernelLaunch("unpack", unpack, UnpackParams, PACK_WARPS, "all")
_PACK_BACK = KernelLaunch("pack_back", pack_back, UnpackParams, PACK_WARPS, "all")
_ALLTOALLV_BACK = KernelLaunch("alltoallv_back", alltoallv_combine, AlltoallvParams, CHANNEL_WARPS)
_REDUCE = KernelLaunch("reduce", reduce, ReduceParams, PACK_WARPS, "all")


def _launches(op: Op, form: Form, by_expert: bool) -> tuple[KernelLaunch, ...]:
    if op == "combine":
        return (*((_PACK_BACK,) if by_expert else ()), _ALLTOALLV_BACK, _REDUCE)
    before = (_LAYOUT, _PACK, _COUNTS) if form == "fresh" else (_PACK,)
    return (*before, _ALLTOALLV, *((_UNPACK,) if by_expert else ()))


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
