"""`low_latency`: decode sizes; a message per (token, expert) into fixed slots, counts beside it.

The SM budget is fixed for a state: every block has an epoch of its own. Nothing is reused from run
to run, so the cached form is the fresh one.
"""

from collections.abc import Callable, Mapping

from kernels.cxx import in_cxx
from kernels.exchange import NO_PATH
from kernels.knobs import Knob
from kernels.low_latency.combine import CombineParams, combine, combine_recv, combine_send
from kernels.low_latency.dispatch import (
    ENTRY,
    DispatchParams,
    dispatch,
    dispatch_recv,
    dispatch_send,
)
from kernels.low_latency.streams import parts_of
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.rows import pad16
from kernels.shape import Shape

#: Bytes of full-size rows that a rank may give to slots; decode sizes need a fraction of it.
MAX_SLOT_BYTES = 4 << 30

SEND_WARPS = Knob("send_warps", "warps of a block that send", (2, 4, 8, 12, 16), 8)
RECV_WARPS = Knob("recv_warps", "warps of a block that receive", (2, 4, 8, 12, 16), 8)
NEAR_BATCH = Knob("near_batch", "rows over NVLink between two releases", (1, 2, 4, 8), 1)
FAR_BATCH = Knob("far_batch", "rows by the NIC between two signals", (1, 2, 4, 8, 16), 4)


def _num_warps(shape: Shape) -> int:
    return SEND_WARPS.of(shape) + RECV_WARPS.of(shape)


def _parts(shape: Shape, *, is_split: bool) -> tuple[int, int]:
    warps = _num_warps(shape) if is_split else SEND_WARPS.of(shape)
    return parts_of(shape, shape.num_sms * warps)


def _peer_rows(shape: Shape) -> int:
    """Return the most rows between two ranks: an expert is selected once by a token."""
    return max(shape.num_tokens, 1) * min(shape.num_topk, shape.experts_per_rank)


def _padded(num_words: int) -> int:
    return pad16(4 * num_words)


def slot_bytes(shape: Shape, *, full: bool) -> dict[str, int]:
    """Return the bytes of the slots of both buffers by region, as stored or of full-size rows."""
    x, y = shape.dispatch_row, shape.combine_row
    x_bytes, y_bytes = (x.full_bytes, y.full_bytes) if full else (x.stride_bytes, y.stride_bytes)
    return {
        "slots": 2 * shape.world_size * _peer_rows(shape) * x_bytes,
        "combine_slots": 2 * max(shape.num_tokens, 1) * shape.num_topk * y_bytes,
    }


def _regions(shape: Shape, *, is_split: bool) -> dict[str, int]:
    world, tokens, rows = shape.world_size, max(shape.num_tokens, 1), _peer_rows(shape)
    num_pairs = shape.experts_per_rank * world
    near, far = _parts(shape, is_split=is_split)
    lists = shape.ranks_per_node * near + (world - shape.ranks_per_node) * far + world
    words = 8 * world * max(near, far)
    return {
        "dispatch_epoch": 8 * shape.num_sms,
        "combine_epoch": 8 * shape.num_sms,
        "counted": 2 * 8 * num_pairs,
        "arrived": words,
        "returned": words,
        "sent_counts": 2 * 4 * num_pairs,
        "entries": lists * rows * ENTRY,
        "counts": lists * _padded(shape.experts_per_rank),
        "send_index": 4 * tokens * shape.num_topk,
        "begins": shape.num_sms * _padded(num_pairs + 1),
        "totals": shape.num_sms * _padded(world),
        "back_rows": 4 * world * rows,
        "back_slots": 4 * world * rows,
        "sums": 8 * shape.num_topk * shape.num_sms * _num_warps(shape),
        "slot_entries": 2 * world * rows * ENTRY,
        **slot_bytes(shape, full=False),
    }


def _settings(shape: Shape, *, is_split: bool) -> Mapping[str, int | str]:
    near, far = _parts(shape, is_split=is_split)
    return {
        "near_parts": near,
        "far_parts": far,
        "num_parts": max(near, far),
        "max_tokens": max(shape.num_tokens, 1),
        "peer_rows": _peer_rows(shape),
        "begins_bytes": _padded(shape.experts_per_rank * shape.world_size + 1),
        "totals_bytes": _padded(shape.world_size),
        "counts_bytes": _padded(shape.experts_per_rank),
        # One for each SM's rows, and one for counts.
        "num_channels": shape.num_sms + 1,
    }


def _refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if shape.num_nodes > 1 and cross_rail == "forbidden":
        return NO_PATH
    needed = sum(slot_bytes(shape, full=True).values())
    if needed > MAX_SLOT_BYTES:
        return (
            f"fixed slots for {shape.num_tokens} tokens of every rank take "
            f"{needed} bytes on each rank, more than {MAX_SLOT_BYTES}: use fewer tokens or another "
            "kernel"
        )
    return None


def _fused_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (KernelLaunch("dispatch", dispatch, DispatchParams, _num_warps),)
    return (KernelLaunch("combine", combine, CombineParams, _num_warps),)


def _split_launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (
            KernelLaunch("dispatch_send", dispatch_send, DispatchParams, _num_warps),
            KernelLaunch("dispatch_recv", dispatch_recv, DispatchParams, _num_warps),
        )
    return (
        KernelLaunch("combine_send", combine_send, CombineParams, _num_warps),
        KernelLaunch("combine_recv", combine_recv, CombineParams, _num_warps),
    )


def _protocol(
    variant: str, summary: str, launches: Callable[[Op, Form], tuple[KernelLaunch, ...]]
) -> Protocol:
    is_split = variant == "split"
    return Protocol(
        kernel="low_latency",
        variant=variant,
        summary=summary,
        regions=lambda shape: _regions(shape, is_split=is_split),
        launches=launches,
        refuses=_refuses,
        settings=lambda shape: _settings(shape, is_split=is_split),
        knobs=(SEND_WARPS, RECV_WARPS, NEAR_BATCH, FAR_BATCH),
        granularity="selection",
    )


FUSED = _protocol(
    "fused",
    "a message per (token, expert) into fixed slots; sends and receives at once",
    _fused_launches,
)
SPLIT = _protocol(
    "split", "likewise, its sending and receiving halves launched apart", _split_launches
)
PROTOCOLS = (FUSED, SPLIT, in_cxx(FUSED), in_cxx(SPLIT))
