"""`nccl_like`: the baseline, a framework's pack and unpack around exchanges in the manner of NCCL.

`dedup` and `selection` send to each rank as many rows as it gets. `padded` is for exchanges with
equal splits (ncclAlltoAll): all messages are as long as the longest of the world.

`allgather` sends every token to every rank, which selects its own. Its combine, a reduce-scatter in
frameworks, is modelled as an all-to-all of `num_tokens` rows between every two ranks, then a
sum at the source of the rows that contribute. So the sum is the oracle's bit for bit: nothing
but contributions is added, by ascending rank, in FP32, rounded once; NCCL's ring rounds on the
way, in an order of its own. On one node its bytes are those of NCCL's ring: a rank sends and
receives `(world_size - 1) * num_tokens` rows. Between nodes a NIC carries
`(world_size - ranks_per_node) * num_tokens` rows here, where a ring through each NIC would carry
`(world_size - 1) / ranks_per_node * num_tokens`: there the times are those of one hop for every
two ranks, and no prediction of NCCL's collectives.
"""

from dataclasses import replace
from functools import partial

from kernels import packing
from kernels.nccl_like import constants
from kernels.nccl_like.alltoallv import AlltoallvParams, alltoallv_combine, alltoallv_dispatch
from kernels.nccl_like.counts import CountsParams, counts
from kernels.packing import Library, Variant
from kernels.protocol import KernelLaunch, Protocol
from kernels.shape import Shape

#: Pairs of warps of a channel, one that sends and one that receives.
NUM_PAIRS = 8
CHANNEL_WARPS = 2 * NUM_PAIRS


def _slot_bytes(shape: Shape) -> int:
    rows = (shape.dispatch_row, shape.combine_row)
    moved = [max(constants.CHUNK_BYTES // row.full_bytes, 1) * row.stride_bytes for row in rows]
    return max(*moved, constants.IDS_CHUNK_BYTES)


def _regions(shape: Shape, *, variant: Variant) -> dict[str, int]:
    world = shape.world_size
    streams = shape.num_sms * NUM_PAIRS
    slots = streams * constants.NUM_SLOTS * _slot_bytes(shape)
    row = packing.column_bytes(shape, variant)
    of_counts = {
        "begins_stage": shape.ranks_per_node * row,
        "peer_begins": world * row,
        "most_rows": 4 * world,
        "counts_epoch": 8,
        "hello": 8 * world,
    }
    return {
        **packing.regions(shape, variant),
        **({} if variant == "allgather" else of_counts),
        "exchange_epoch": 8 * shape.num_sms,
        "head": 8 * world * streams,
        "tail": 8 * world * streams,
        "fifo": world * slots,
        "net_fifo": shape.ranks_per_node * slots if shape.num_nodes > 1 else 16,
    }


def _settings(shape: Shape, *, variant: Variant) -> dict[str, int | str]:
    return {
        **packing.settings(shape, variant),
        "begins_bytes": packing.column_bytes(shape, variant),
        "num_slots": constants.NUM_SLOTS,
        "slot_bytes": _slot_bytes(shape),
        "chunk_bytes": constants.CHUNK_BYTES,
        "ids_chunk_bytes": constants.IDS_CHUNK_BYTES,
        "base_ns": constants.BASE_NS,
        "step_ns": constants.STEP_NS,
        "num_channels": 2 * shape.ranks_per_node * shape.num_sms * NUM_PAIRS,
        "max_copy_bytes": _slot_bytes(shape),
    }


def _exchange(name: str) -> Library:
    """Return the exchanges there and back under a name, and the counts before them."""
    there = KernelLaunch(name, alltoallv_dispatch, AlltoallvParams, CHANNEL_WARPS)
    back = "alltoall" if name == "allgather" else name
    return Library(
        there,
        KernelLaunch(f"{back}_back", alltoallv_combine, AlltoallvParams, CHANNEL_WARPS),
        KernelLaunch("counts", counts, CountsParams, packing.PACK_WARPS),
    )


def _variant(variant: Variant, summary: str, exchange: str) -> Protocol:
    protocol = packing.baseline("nccl_like", variant, summary, _exchange(exchange))
    return replace(
        protocol,
        regions=partial(_regions, variant=variant),
        settings=partial(_settings, variant=variant),
        route="pxn",
        devices=("sim", "cpu"),
    )


DEDUP = _variant(
    "dedup",
    "model of NCCL's all-to-all-v, a row per (token, rank): the strongest baseline",
    "alltoallv",
)
SELECTION = _variant(
    "selection",
    "model of NCCL's all-to-all-v, a row per (token, expert): what frameworks do",
    "alltoallv",
)
PADDED = _variant(
    "padded",
    "model of NCCL's all-to-all, each message padded to the longest of the world",
    "alltoall",
)
ALLGATHER = _variant(
    "allgather",
    "model of an all-gather of all tokens, and of a reduce-scatter by one hop a pair",
    "allgather",
)
PROTOCOLS = (DEDUP, SELECTION, PADDED, ALLGATHER)
