"""What a framework runs around a library's all-to-all-v: count, pack, unpack, reduce.

Columns are what rows are sorted by before the exchange: destination ranks, or experts where a row
stands for one selection (`by_expert`).
"""

from kernels.packing.layout import LayoutParams, PackParams, layout, pack
from kernels.packing.unpack import ReduceParams, UnpackParams, pack_back, reduce, unpack
from kernels.protocol import KernelLaunch
from kernels.shape import Shape

#: Warps of a block of these kernels, which run on every SM.
PACK_WARPS = 8
#: SMs that no GPU here exceeds: the tables have a row for each.
MAX_SMS = 160

LAYOUT = KernelLaunch("layout", layout, LayoutParams, PACK_WARPS, "all")
PACK = KernelLaunch("pack", pack, PackParams, PACK_WARPS, "all")
UNPACK = KernelLaunch("unpack", unpack, UnpackParams, PACK_WARPS, "all")
PACK_BACK = KernelLaunch("pack_back", pack_back, UnpackParams, PACK_WARPS, "all")
REDUCE = KernelLaunch("reduce", reduce, ReduceParams, PACK_WARPS, "all")


def num_columns(shape: Shape, *, by_expert: bool) -> int:
    """Return the columns of a rank's rows."""
    return shape.world_size * (shape.experts_per_rank if by_expert else 1)


def column_bytes(shape: Shape, *, by_expert: bool) -> int:
    """Return the bytes of a row of int32 counts and their sum, a multiple of 16."""
    return -(-4 * (num_columns(shape, by_expert=by_expert) + 1) // 16) * 16


def ids_bytes(shape: Shape, *, by_expert: bool) -> int:
    """Return the bytes of a row's expert ids; its weights take as many."""
    return 4 if by_expert else 4 * shape.num_topk


def regions(shape: Shape, *, by_expert: bool) -> dict[str, int]:
    """Return the tables and buffers of these kernels, name to bytes."""
    world, tokens = shape.world_size, max(shape.num_tokens, 1)
    row = column_bytes(shape, by_expert=by_expert)
    rows = tokens * (shape.num_topk if by_expert else min(shape.num_topk, world))
    ids = ids_bytes(shape, by_expert=by_expert)
    received = world * tokens * min(shape.num_topk, shape.experts_per_rank) if by_expert else 0
    return {
        "worker_counts": MAX_SMS * PACK_WARPS * row,
        "block_counts": MAX_SMS * row,
        "block_totals": 2 * MAX_SMS * row,
        "cursors": MAX_SMS * PACK_WARPS * row,
        "begins": row,
        "send_begins": 4 * (world + 1),
        "recv_begins": 4 * (world + 1),
        "pair_begins": 4 * num_columns(shape, by_expert=by_expert),
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
    }


def settings(shape: Shape, *, by_expert: bool) -> dict[str, int | str]:
    """Return the parameters of these kernels, and where an exchange reads and writes."""
    return {
        "by_expert": int(by_expert),
        "num_columns": num_columns(shape, by_expert=by_expert),
        "column_bytes": column_bytes(shape, by_expert=by_expert),
        "counts_per_rank": shape.experts_per_rank if by_expert else 1,
        "ids_bytes": ids_bytes(shape, by_expert=by_expert),
        "into_x": "stage_x" if by_expert else "recv_x",
        "into_idx": "stage_idx" if by_expert else "recv_topk_idx",
        "into_weights": "stage_weights" if by_expert else "recv_topk_weights",
        "from_y": "back_y" if by_expert else "y",
        "into_y": "stage_y",
    }
