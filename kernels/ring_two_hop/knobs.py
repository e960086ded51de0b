"""Chunks and rings of `ring_two_hop`: the published table, and what is legal."""

from collections.abc import Callable

from kernels.knobs import Knob
from kernels.ring_two_hop.params import DISPATCH_WARPS, SENDER_WARPS, WORKER_WARPS
from kernels.shape import Shape

#: World size to (nvl_send, nvl_recv, rdma_send, rdma_recv), rows: DeepEP V1's `get_dispatch_config`
#: and `get_combine_config`. Up to 8 ranks it has no second hop in combine; that row's rdma chunk is
#: the one of dispatch.
DISPATCH_TABLE = {
    2: (24, 256, 6, 128),
    4: (6, 256, 6, 128),
    8: (6, 256, 6, 128),
    16: (36, 288, 20, 128),
    24: (32, 288, 8, 128),
    32: (32, 288, 8, 128),
    48: (32, 288, 8, 128),
    64: (32, 288, 8, 128),
    96: (20, 480, 12, 128),
    128: (20, 560, 12, 128),
    144: (32, 720, 12, 128),
    160: (28, 720, 12, 128),
}
COMBINE_TABLE = {
    2: (10, 256, 6, 128),
    4: (9, 256, 6, 128),
    8: (4, 256, 6, 128),
    16: (4, 288, 12, 128),
    24: (1, 288, 8, 128),
    32: (1, 288, 8, 128),
    48: (1, 288, 8, 128),
    64: (1, 288, 8, 128),
    96: (1, 480, 8, 128),
    128: (1, 560, 8, 128),
    144: (2, 720, 8, 128),
    160: (2, 720, 8, 128),
}


def _entry(table: dict[int, tuple[int, int, int, int]], shape: Shape, column: int) -> int:
    """Return the table's value for the nearest world size, the smaller of two as near."""
    nearest = min(table, key=lambda size: (abs(size - shape.world_size), size))
    return table[nearest][column]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // max(multiple, 1)) * multiple


def _column(table: dict[int, tuple[int, int, int, int]], column: int) -> Callable[[Shape], int]:
    return lambda shape: _entry(table, shape, column)


DISPATCH_NVL_SEND = Knob(
    "dispatch_nvl_send",
    "most rows that a forwarder of dispatch sends before it releases them",
    (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44),
    _column(DISPATCH_TABLE, 0),
)
DISPATCH_NVL_RECV = Knob(
    "dispatch_nvl_recv",
    "rows of a dispatch ring over NVLink",
    (256, 288, 512),
    _column(DISPATCH_TABLE, 1),
)
DISPATCH_RDMA_SEND = Knob(
    "dispatch_rdma_send",
    "rows of a dispatched chunk over the network",
    (4, 8, 12, 16, 20, 24, 28, 32),
    _column(DISPATCH_TABLE, 2),
)
DISPATCH_RDMA_RECV = Knob(
    "dispatch_rdma_recv",
    "rows of a dispatch ring over the network",
    (64, 128, 256),
    lambda shape: _round_up(_entry(DISPATCH_TABLE, shape, 3), DISPATCH_RDMA_SEND.of(shape)),
)
COMBINE_NVL_SEND = Knob(
    "combine_nvl_send",
    "most rows that a sender of combine sends before it releases them",
    (1, 2, 3, 4, 5, 6, 7),
    _column(COMBINE_TABLE, 0),
)
COMBINE_NVL_RECV = Knob(
    "combine_nvl_recv",
    "rows of a combine ring over NVLink, shared evenly by the nodes",
    (256, 288, 512),
    lambda shape: _round_up(_entry(COMBINE_TABLE, shape, 1), shape.num_nodes),
)
COMBINE_RDMA_SEND = Knob(
    "combine_rdma_send",
    "sums of a combined chunk over the network",
    (8, 12, 16, 20, 24, 28, 32),
    _column(COMBINE_TABLE, 2),
)
COMBINE_RDMA_RECV = Knob(
    "combine_rdma_recv",
    "sums of a combine ring over the network",
    (64, 128, 256),
    lambda shape: _round_up(_entry(COMBINE_TABLE, shape, 3), COMBINE_RDMA_SEND.of(shape)),
)
KNOBS = (
    DISPATCH_NVL_SEND,
    DISPATCH_NVL_RECV,
    DISPATCH_RDMA_SEND,
    DISPATCH_RDMA_RECV,
    COMBINE_NVL_SEND,
    COMBINE_NVL_RECV,
    COMBINE_RDMA_SEND,
    COMBINE_RDMA_RECV,
)


def refuses(shape: Shape, op: str, *, cross_rail: str) -> str | None:
    """Return why a shape or its knobs cannot run, or None."""
    if shape.num_nodes == 1:
        return "one node needs one hop: use ring"
    if shape.num_sms % 2:
        return f"num_sms must be even, got {shape.num_sms}: a channel is two SMs"
    most_ranks = DISPATCH_WARPS - SENDER_WARPS - 1
    if shape.ranks_per_node > most_ranks:
        return (
            f"a block of {DISPATCH_WARPS} warps has {most_ranks} for receivers, one for each rank "
            f"of a node, got {shape.ranks_per_node} ranks per node"
        )
    if shape.num_nodes > WORKER_WARPS:
        return (
            f"a block of combine has {WORKER_WARPS} warps for forwarders, at least one for each "
            f"node, got {shape.num_nodes} nodes"
        )
    return _refuses_rdma(shape) or _refuses_nvl(shape)


def _refuses_rdma(shape: Shape) -> str | None:
    for send, recv in (
        (DISPATCH_RDMA_SEND, DISPATCH_RDMA_RECV),
        (COMBINE_RDMA_SEND, COMBINE_RDMA_RECV),
    ):
        chunk, ring = send.of(shape), recv.of(shape)
        if chunk < 1 or ring % chunk or 2 * chunk > ring:
            return (
                f"{recv.name} must be a multiple of {send.name} and at least twice as much, "
                f"got {ring} and {chunk}"
            )
    return None


def _refuses_nvl(shape: Shape) -> str | None:
    chunk, ring = DISPATCH_NVL_SEND.of(shape), DISPATCH_NVL_RECV.of(shape)
    if not 1 <= chunk < ring:
        return (
            f"{DISPATCH_NVL_SEND.name} must be at least 1 and less than "
            f"{DISPATCH_NVL_RECV.name}, got {chunk} and {ring}"
        )
    chunk, ring = COMBINE_NVL_SEND.of(shape), COMBINE_NVL_RECV.of(shape)
    if chunk < 1 or ring % shape.num_nodes:
        return (
            f"{COMBINE_NVL_SEND.name} must be at least 1 and {COMBINE_NVL_RECV.name} a multiple of "
            f"the {shape.num_nodes} nodes, got {chunk} and {ring}"
        )
    most = max(chunk, COMBINE_RDMA_SEND.of(shape))
    if ring // shape.num_nodes <= most:
        return (
            f"{COMBINE_NVL_RECV.name} must leave each of the {shape.num_nodes} nodes more than "
            f"the larger of {COMBINE_NVL_SEND.name} and {COMBINE_RDMA_SEND.name}, got {ring} for "
            f"chunks of {most}"
        )
    return None
