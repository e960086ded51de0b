"""The tables and buffers of the kernels here, and what their parameters stand for, by variant."""

from typing import Literal

from kernels.rows import pad16
from kernels.shape import Shape

#: `dedup`: a row per (token, rank). `selection`: a row per (token, expert). `padded`: as `dedup`,
#: all messages as long as the longest. `allgather`: every token to every rank.
Variant = Literal["dedup", "selection", "padded", "allgather"]

#: Warps of a block of these kernels, which run on every SM.
PACK_WARPS = 8
#: SMs that no GPU here exceeds: the tables have a row for each.
MAX_SMS = 160
_MAX_WORKERS = MAX_SMS * PACK_WARPS


def num_columns(shape: Shape, variant: Variant) -> int:
    """Return the columns of a rank's rows."""
    return shape.world_size * (shape.experts_per_rank if variant == "selection" else 1)


def column_bytes(shape: Shape, variant: Variant) -> int:
    """Return the bytes of a row of int32 counts and their sum, a multiple of 16."""
    return pad16(4 * (num_columns(shape, variant) + 1))


def ids_bytes(shape: Shape, variant: Variant) -> int:
    """Return the bytes of a row's expert ids; its weights take as many."""
    return 4 if variant == "selection" else 4 * shape.num_topk


def regions(shape: Shape, variant: Variant) -> dict[str, int]:
    """Return the tables and buffers of these kernels, name to bytes."""
    own = _gathered(shape) if variant == "allgather" else _packed(shape, variant)
    return {name: max(num_bytes, 16) for name, num_bytes in own.items()}


def settings(shape: Shape, variant: Variant) -> dict[str, int | str]:
    """Return the parameters of these kernels, and where an exchange reads and writes."""
    by_expert, padded = variant == "selection", variant == "padded"
    common: dict[str, int | str] = {
        "by_expert": int(by_expert),
        "is_padded": int(padded),
        "num_columns": num_columns(shape, variant),
        "column_bytes": column_bytes(shape, variant),
        "counts_per_rank": shape.experts_per_rank if by_expert else 1,
        "ids_bytes": ids_bytes(shape, variant),
        "split_tokens": shape.num_tokens,
        "from_y": "y" if variant == "dedup" else "back_y",
        "into_y": "stage_y",
    }
    if variant == "allgather":
        sent = {"send_x": "x", "send_idx": "own_idx", "send_topk_weights": "topk_weights"}
        into = {"into_x": "gather_x", "into_idx": "gather_idx", "into_weights": "gather_weights"}
        return {**common, **sent, **into, "to_all": 1}
    into = {"into_x": "stage_x", "into_idx": "stage_idx", "into_weights": "stage_weights"}
    if variant == "dedup":
        into = {
            "into_x": "recv_x",
            "into_idx": "recv_topk_idx",
            "into_weights": "recv_topk_weights",
        }
    return {**common, **into, "to_all": 0}


def split_rows(shape: Shape) -> int:
    """Return the rows of a buffer that holds the longest equal splits of all ranks."""
    return shape.world_size * shape.num_tokens


def _of_combine(shape: Shape) -> dict[str, int]:
    """Return where a token's rows come back, which `reduce` reads."""
    entries = 4 * max(shape.num_tokens, 1) * shape.num_topk
    return {
        "send_begins": 4 * (shape.world_size + 1),
        "recv_begins": 4 * (shape.world_size + 1),
        "send_num": 4 * max(shape.num_tokens, 1),
        "send_columns": entries,
        "send_rows": entries,
        "send_weights": entries,
    }


def _of_splits(shape: Shape) -> dict[str, int]:
    """Return what `spread` reads: how many rows came, and each one's place in equal splits."""
    return {"num_recv": 4, "recv_places": 4 * split_rows(shape)}


def _packed(shape: Shape, variant: Variant) -> dict[str, int]:
    world, tokens = shape.world_size, max(shape.num_tokens, 1)
    row, ids = column_bytes(shape, variant), ids_bytes(shape, variant)
    x_bytes, y_bytes = shape.dispatch_row.stride_bytes, shape.combine_row.stride_bytes
    rows = tokens * min(shape.num_topk, world)
    received = 0
    if variant == "selection":
        rows = tokens * shape.num_topk
        received = world * tokens * min(shape.num_topk, shape.experts_per_rank)
    elif variant == "padded":
        rows = received = split_rows(shape)
    return {
        "worker_counts": _MAX_WORKERS * row,
        "block_counts": MAX_SMS * row,
        "block_totals": 2 * MAX_SMS * row,
        "cursors": _MAX_WORKERS * row,
        "begins": row,
        **_of_combine(shape),
        "pair_begins": 4 * num_columns(shape, variant),
        "send_x": rows * x_bytes,
        "send_idx": rows * ids,
        "send_topk_weights": rows * ids,
        "stage_y": rows * y_bytes,
        "stage_x": received * x_bytes,
        "stage_idx": received * ids,
        "stage_weights": received * ids,
        "back_y": received * y_bytes,
        **(_of_splits(shape) if variant == "padded" else {}),
    }


def _gathered(shape: Shape) -> dict[str, int]:
    rows, row = split_rows(shape), column_bytes(shape, "allgather")
    ids = ids_bytes(shape, "allgather")
    # Items are shares of a source's tokens: as many as workers, rounded up by source.
    items = 4 * (_MAX_WORKERS + shape.world_size + 1)
    return {
        "worker_counts": _MAX_WORKERS * row,
        "cursors": _MAX_WORKERS * row,
        "item_counts": items,
        "item_begins": MAX_SMS * items,
        **_of_combine(shape),
        **_of_splits(shape),
        "own_idx": shape.num_tokens * ids,
        "gather_x": rows * shape.dispatch_row.stride_bytes,
        "gather_idx": rows * ids,
        "gather_weights": rows * ids,
        "back_y": rows * shape.combine_row.stride_bytes,
        "stage_y": rows * shape.combine_row.stride_bytes,
    }
