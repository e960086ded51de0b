"""`direct`: one hop, every row written once into its final place; combine by pull or by push.

The SM budget is fixed for a state: flags count blocks, and every block has an epoch of its own.
"""

from kernels.direct.combine_pull import PullParams, combine_pull
from kernels.direct.combine_push import PushParams, combine_push
from kernels.direct.dispatch import DispatchParams, dispatch
from kernels.exchange import NO_PATH
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

#: Warps of a block: enough bytes in flight to fill an SM's copy rate, within 64 warps and their
#: registers.
DISPATCH_WARPS, PULL_WARPS, PUSH_WARPS, REDUCE_WARPS = 16, 24, 8, 8
#: Rows that a pusher sends to one source before it releases them: a release waits for an
#: acknowledgement.
CHUNK_ROWS = 1
#: Likewise where some go by the network, whose puts and signals cost messages.
NIC_CHUNK_ROWS = 2


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers of `direct`, name to bytes."""
    world, tokens, copies = shape.world_size, shape.num_tokens, num_copies(shape)
    row = counts_row_bytes(shape)
    workers = shape.num_sms * max(DISPATCH_WARPS, PULL_WARPS, PUSH_WARPS + REDUCE_WARPS)
    return {
        "dispatch_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "counted": 8,
        "hello": 8 * world,
        "done": 16,
        "ready": 8 * world,
        "read": 8,
        "taken": 16,
        "progress": 8 * world * shape.num_sms * PUSH_WARPS,
        "counts": world * row,
        "own_counts": row,
        "worker_counts": workers * row,
        "starts": workers * row,
        "cursors": workers * row,
        "stage_begins": workers * row,
        "bases": row,
        "send_num": 4 * max(tokens, 1),
        "send_ranks": 4 * copies * max(tokens, 1),
        "send_rows": 4 * copies * max(tokens, 1),
        "slots": 4 * copies * workers,
        "stage_idx": 4 * shape.num_topk * copies * max(tokens, 1),
        "stage_weights": 4 * shape.num_topk * copies * max(tokens, 1),
        "stage": shape.combine_row.stride_bytes * copies * max(tokens, 1),
    }


def num_copies(shape: Shape) -> int:
    """Return the most ranks that one token goes to, the stride of per-token lists."""
    return min(shape.num_topk, shape.world_size)


def counts_row_bytes(shape: Shape) -> int:
    """Return the bytes of a rank's counts and their prefix sums, a multiple of 16."""
    return -(-(8 * shape.world_size + 4) // 16) * 16


def settings(shape: Shape) -> dict[str, int]:
    """Return the parameters of the kernels of `direct`."""
    return {
        "num_copies": num_copies(shape),
        "counts_row_bytes": counts_row_bytes(shape),
        "num_push_warps": PUSH_WARPS,
        "chunk_rows": CHUNK_ROWS if shape.num_nodes == 1 else NIC_CHUNK_ROWS,
        "num_channels": shape.num_sms * PUSH_WARPS,
    }


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    return NO_PATH if shape.num_nodes > 1 and cross_rail == "forbidden" else None


def _refuses_pull(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if op != "dispatch" and shape.num_nodes > 1:
        return "pulls by remote loads, which reach one node only"
    return _refuses(shape, op, cross_rail=cross_rail)


_DISPATCH = KernelLaunch("dispatch", dispatch, DispatchParams, DISPATCH_WARPS)


def _pull_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    return (
        _DISPATCH
        if op == "dispatch"
        else KernelLaunch("combine", combine_pull, PullParams, PULL_WARPS),
    )


def _push_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (_DISPATCH,)
    return (KernelLaunch("combine", combine_push, PushParams, PUSH_WARPS + REDUCE_WARPS),)


PULL = Protocol(
    kernel="direct",
    variant="pull",
    summary="one hop into final places; combine reads peers' rows and reduces in registers",
    regions=regions,
    launches=_pull_launches,
    refuses=_refuses_pull,
    settings=settings,
    pulls=True,
)
PUSH = Protocol(
    kernel="direct",
    variant="push",
    summary="one hop into final places; combine sends rows back and reduces as they arrive",
    regions=regions,
    launches=_push_launches,
    refuses=_refuses,
    settings=settings,
)
PROTOCOLS = (PULL, PUSH)
