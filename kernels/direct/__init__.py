"""`direct`: one hop, every row written once into its final place; combine by pull or by push.

The SM budget is fixed for a state: flags count blocks, and every block has an epoch of its own.
"""

from dataclasses import replace

from kernels.cxx import in_cxx
from kernels.direct.combine_pull import PullParams, combine_pull
from kernels.direct.combine_push import PushParams, combine_push
from kernels.direct.dispatch import DispatchParams, dispatch
from kernels.exchange import NO_PATH
from kernels.knobs import Knob, too_many_warps
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.rows import pad16
from kernels.shape import Shape

# Enough warps to have the bytes in flight that fill an SM's copy rate.
DISPATCH_WARPS = Knob(
    "dispatch_warps", "warps of a block of dispatch, all send", (4, 8, 12, 16, 24, 32), 16
)
PULL_WARPS = Knob(
    "pull_warps", "warps of a block of combine, all read and sum", (8, 12, 16, 24, 32), 24
)
# In CUDA C++ bytes in flight are in shared memory, whatever the warps.
CXX_PULL_WARPS = replace(PULL_WARPS, choices=(4, 8, 12, 16), default=12)
PUSH_WARPS = Knob("push_warps", "warps of a block that push", (2, 4, 8, 12, 16, 24), 8)
REDUCE_WARPS = Knob("reduce_warps", "warps of a block that sum pushed rows", (2, 4, 8, 16, 24), 8)
# A release waits for an acknowledgement; by the network, puts and signals cost messages.
CHUNK_ROWS = Knob(
    "chunk_rows",
    "rows that a pusher sends to one source before it releases them",
    (1, 2, 4, 8),
    lambda shape: 1 if shape.num_nodes == 1 else 2,
)


def regions(shape: Shape) -> dict[str, int]:
    """Return the flags and buffers of `direct`, name to bytes."""
    world, tokens, copies = shape.world_size, shape.num_tokens, num_copies(shape)
    row = counts_row_bytes(shape)
    pushers = shape.num_sms * PUSH_WARPS.of(shape)
    workers = shape.num_sms * max(
        DISPATCH_WARPS.of(shape), PULL_WARPS.of(shape), _push_block_warps(shape)
    )
    return {
        "dispatch_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "counted": 8,
        "hello": 8 * world,
        "done": 16,
        "ready": 8 * world,
        "read": 8,
        "taken": 16,
        "progress": 8 * world * pushers,
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
    return pad16(8 * shape.world_size + 4)


def _push_block_warps(shape: Shape) -> int:
    return PUSH_WARPS.of(shape) + REDUCE_WARPS.of(shape)


def settings(shape: Shape) -> dict[str, int]:
    """Return the parameters of the kernels of `direct`."""
    return {
        "num_copies": num_copies(shape),
        "counts_row_bytes": counts_row_bytes(shape),
        "num_channels": shape.num_sms * PUSH_WARPS.of(shape),
    }


def _no_path(shape: Shape, cross_rail: str) -> str | None:
    return NO_PATH if shape.num_nodes > 1 and cross_rail == "forbidden" else None


def _refuses_pull(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if op != "dispatch" and shape.num_nodes > 1:
        return "pulls by remote loads, which reach one node only"
    return (
        _no_path(shape, cross_rail)
        or too_many_warps(DISPATCH_WARPS.name, DISPATCH_WARPS.of(shape))
        or too_many_warps(PULL_WARPS.name, PULL_WARPS.of(shape))
    )


def _refuses_push(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    return (
        _no_path(shape, cross_rail)
        or too_many_warps(DISPATCH_WARPS.name, DISPATCH_WARPS.of(shape))
        or too_many_warps(f"{PUSH_WARPS.name} + {REDUCE_WARPS.name}", _push_block_warps(shape))
    )


_DISPATCH = KernelLaunch("dispatch", dispatch, DispatchParams, DISPATCH_WARPS.of)


def _pull_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    return (
        _DISPATCH
        if op == "dispatch"
        else KernelLaunch("combine", combine_pull, PullParams, PULL_WARPS.of),
    )


def _cxx_pull_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (_DISPATCH,)
    return (KernelLaunch("combine", combine_pull, PullParams, CXX_PULL_WARPS.of),)


def _push_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (_DISPATCH,)
    return (KernelLaunch("combine", combine_push, PushParams, _push_block_warps),)


PULL = Protocol(
    kernel="direct",
    variant="pull",
    summary="one hop into final places; combine reads peers' rows and reduces in registers",
    regions=regions,
    launches=_pull_launches,
    refuses=_refuses_pull,
    settings=settings,
    knobs=(DISPATCH_WARPS, PULL_WARPS),
    pulls=True,
)
PUSH = Protocol(
    kernel="direct",
    variant="push",
    summary="one hop into final places; combine sends rows back and reduces as they arrive",
    regions=regions,
    launches=_push_launches,
    refuses=_refuses_push,
    settings=settings,
    knobs=(DISPATCH_WARPS, PUSH_WARPS, REDUCE_WARPS, CHUNK_ROWS),
)
PROTOCOLS = (
    PULL,
    PUSH,
    in_cxx(replace(PULL, launches=_cxx_pull_launches, knobs=(DISPATCH_WARPS, CXX_PULL_WARPS))),
    in_cxx(PUSH),
)
