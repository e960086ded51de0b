"""`two_hop/staged`: two hops for clusters, the first by the device's library and whole.

A token goes once to each other node that wants it, to the rank there with the same local rank, by
the library's send and receive: NCCL on `cuda`, MPI on `cpu`. So it needs no NIC that kernels drive.
The second hop and the sum inside a node are kernels as those of `two_hop/rail`, over NVLink. Hops
follow each other, each over all rows: a time is the sum of its phases, where `two_hop/rail` is as
long as its longest.

The host reads the counts of a fresh dispatch before it can ask for the first hop, while `pack`
runs.
"""

from comms.collectives import Wanted
from kernels.packing.unpack import ReduceParams, reduce
from kernels.protocol import Form, HostLaunch, KernelLaunch, Op, Protocol
from kernels.rows import pad16
from kernels.shape import Shape
from kernels.two_hop.staged import exchange
from kernels.two_hop.staged.combine import sum_nodes
from kernels.two_hop.staged.forward import forward
from kernels.two_hop.staged.pack import count, pack, totals
from kernels.two_hop.staged.params import CountParams, ForwardParams, PackParams, SumParams

NUM_WARPS = 16

_COUNT = KernelLaunch("count", count, CountParams, NUM_WARPS)
_TOTALS = KernelLaunch("totals", totals, CountParams, NUM_WARPS)
_COUNTS = HostLaunch("counts", exchange.counts, waits=False)
_SIZES = HostLaunch("sizes", exchange.sizes)
_PACK = KernelLaunch("pack", pack, PackParams, NUM_WARPS)
_RAIL = HostLaunch("rail", exchange.rail, waits=False)
_FORWARD = KernelLaunch("forward", forward, ForwardParams, NUM_WARPS)
_SUM_NODES = KernelLaunch("sum_nodes", sum_nodes, SumParams, NUM_WARPS)
_RAIL_BACK = HostLaunch("rail_back", exchange.rail_back, waits=False)
_REDUCE = KernelLaunch("reduce", reduce, ReduceParams, NUM_WARPS)


def settings(shape: Shape) -> dict[str, int | str]:
    """Return the parameters of the kernels."""
    return {
        "num_nodes": shape.num_nodes,
        "most_tokens": shape.num_tokens,
        "counts_bytes": pad16(4 * (shape.world_size + shape.num_nodes)),
        "lists_bytes": pad16(8 * shape.num_topk + 4 * (shape.num_nodes + 1)),
        "record_bytes": pad16(4 * shape.ranks_per_node + 8 * shape.num_topk),
        "kept_bytes": 8 + 8 * shape.ranks_per_node,
        # What `reduce` calls these.
        "stage_y": "back",
        "send_weights": "send_rows",
        "by_expert": 0,
    }


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers, name to bytes."""
    sizes = {name: size for name, size in settings(shape).items() if isinstance(size, int)}
    world, nodes, tokens = shape.world_size, shape.num_nodes, shape.num_tokens
    workers = shape.num_sms * NUM_WARPS
    staged, arrived = tokens * min(shape.num_topk, nodes), tokens * (nodes - 1)
    x_bytes, y_bytes = shape.dispatch_row.stride_bytes, shape.combine_row.stride_bytes
    own = {
        "dispatch_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "grant": 8 * shape.ranks_per_node,
        "done": 8,
        "ready": 8 * shape.ranks_per_node,
        "read": 8,
        "worker_counts": workers * sizes["counts_bytes"],
        "block_counts": shape.num_sms * sizes["counts_bytes"],
        "own_counts": sizes["counts_bytes"],
        "all_counts": world * sizes["counts_bytes"],
        "cursors": workers * sizes["counts_bytes"],
        "lists": workers * sizes["lists_bytes"],
        "send_num": 4 * tokens,
        "send_nodes": 4 * tokens * shape.num_topk,
        "send_rows": 4 * tokens * shape.num_topk,
        "kept": tokens * nodes * sizes["kept_bytes"],
        "stage_x": staged * x_bytes,
        "stage_records": staged * sizes["record_bytes"],
        "rail_x": arrived * x_bytes,
        "rail_records": arrived * sizes["record_bytes"],
        "rail_back": arrived * y_bytes,
        "back": staged * y_bytes,
    }
    return {name: max(num_bytes, 16) for name, num_bytes in own.items()}


def _launches(op: Op, form: Form) -> tuple[KernelLaunch | HostLaunch, ...]:
    if op == "combine":
        return (_SUM_NODES, _RAIL_BACK, _REDUCE)
    if form == "cached":
        return (_PACK, _RAIL, _FORWARD)
    return (_COUNT, _TOTALS, _COUNTS, _PACK, _SIZES, _RAIL, _FORWARD)


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    return "one node needs one hop: use direct" if shape.num_nodes == 1 else None


def _library(shape: Shape) -> Wanted:
    return Wanted.within(shape.num_sms)


STAGED = Protocol(
    kernel="two_hop",
    variant="staged",
    summary="one copy per node by the device's library, then forwarded into final places; combine "
    "adds inside each node first",
    regions=regions,
    launches=_launches,
    refuses=_refuses,
    settings=settings,
    route="rail",
    pulls=True,
    hops=2,
    devices=("cpu", "cuda"),
    library=_library,
)
