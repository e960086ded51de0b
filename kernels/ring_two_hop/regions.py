"""Memory of `ring_two_hop`: bytes of every region, strides, and what else kernels are told."""

from kernels.ring_two_hop.knobs import (
    COMBINE_NVL_RECV,
    COMBINE_RDMA_RECV,
    DISPATCH_NVL_RECV,
    DISPATCH_RDMA_RECV,
)
from kernels.ring_two_hop.params import (
    COMBINE_WARPS,
    DISPATCH_WARPS,
    SENDER_WARPS,
    WORKER_WARPS,
)
from kernels.rows import pad16
from kernels.shape import Shape


def settings(shape: Shape) -> dict[str, int]:
    """Return the parameters of the kernels of `ring_two_hop`."""
    nodes, world = shape.num_nodes, shape.world_size
    return {
        "num_nodes": nodes,
        "num_copies": min(shape.num_topk, nodes),
        "most_tokens": max(shape.num_tokens, 1),
        "counts_bytes": pad16(4 * (world + nodes)),
        "world_counts_bytes": pad16(4 * world),
        "channel_meta_bytes": pad16(8 * (shape.ranks_per_node + 1)),
        "info_bytes": pad16(8 + 8 * shape.num_topk),
        "scratch_bytes": 48 * nodes
        + max(8 * world, 2 * pad16(4 * (world + nodes)), 8 * WORKER_WARPS),
        # One for rows and one for credits of each channel of two SMs.
        "num_channels": shape.num_sms,
    }


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers of `ring_two_hop`, name to bytes."""
    sizes = settings(shape)
    nodes, local, world = shape.num_nodes, shape.ranks_per_node, shape.world_size
    channels, tokens = max(shape.num_sms // 2, 1), sizes["most_tokens"]
    streams, near = channels * nodes, channels * local
    counts, copies = sizes["counts_bytes"], sizes["num_copies"]
    rdma, nvl = streams * DISPATCH_RDMA_RECV.of(shape), near * DISPATCH_NVL_RECV.of(shape)
    back, near_back = streams * COMBINE_RDMA_RECV.of(shape), near * COMBINE_NVL_RECV.of(shape)
    x_row, y_row = shape.dispatch_row.stride_bytes, shape.combine_row.stride_bytes
    return {
        "barrier_epoch": 8,
        "dispatch_epoch": 8,
        "combine_epoch": 8,
        "hello": 8 * nodes,
        "relayed": 8 * local,
        "counted": 8,
        "worker_counts": shape.num_sms * DISPATCH_WARPS * counts,
        "block_counts": shape.num_sms * counts,
        "own_counts": counts,
        "counts": world * sizes["world_counts_bytes"],
        "bases": 4 * world,
        "send_num": 4 * tokens,
        "send_nodes": 4 * copies * tokens,
        "send_slots": 4 * copies * tokens,
        "scratch": shape.num_sms * COMBINE_WARPS * sizes["scratch_bytes"],
        "send_meta": streams * sizes["channel_meta_bytes"],
        "channel_meta": streams * sizes["channel_meta_bytes"],
        "told": 8 * streams,
        "filled": 8 * channels * SENDER_WARPS,
        "rdma_tail": 8 * streams,
        "rdma_credit": 8 * streams,
        "forwarded": 8 * streams * local,
        "nvl_spans": 16 * near * nodes,
        "nvl_tail": 8 * near,
        "nvl_credit": 8 * near,
        "nvl_ends": 4 * nodes * tokens * local,
        "send_rows": rdma * x_row,
        "send_info": rdma * sizes["info_bytes"],
        "rdma_rows": rdma * x_row,
        "rdma_info": rdma * sizes["info_bytes"],
        "nvl_rows": nvl * x_row,
        "nvl_idx": 4 * shape.num_topk * nvl,
        "nvl_weights": 4 * shape.num_topk * nvl,
        "nvl_nodes": 8 * nvl,
        "back_nvl_tail": 8 * near * nodes,
        "back_nvl_credit": 8 * near * nodes,
        "back_tail": 8 * streams,
        "back_credit": 8 * streams,
        "summed": 8 * channels * WORKER_WARPS,
        "reduced": 8 * channels * WORKER_WARPS,
        "back_nvl_rows": near_back * y_row,
        "back_send_rows": back * y_row,
        "back_rows": back * y_row,
    }
