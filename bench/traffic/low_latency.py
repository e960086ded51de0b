"""What `low_latency` takes beside its bytes: each cost on its critical path, by its constant.

The fused launch's slowest rank takes about the bound of its port, which is bytes at the cap and one
latency, and these: before the first byte can enter the port, for messages that hold a NIC longer
than their bytes, and after the last row has arrived. Where there are several nodes, the NIC is
taken for the fullest port.
"""

from dataclasses import dataclass

from bench.traffic.bounds import HalfOp
from comms.fabric import Fabric
from kernels.low_latency import FAR_BATCH, RECV_WARPS, SEND_WARPS
from kernels.low_latency.streams import parts_of
from kernels.shape import Shape


@dataclass(frozen=True, slots=True)
class Overhead:
    """One cost.

    Attributes:
        name: what takes the time.
        us: how long, in microseconds.
        source: constants of the fabric's profile that it is made of, and how often.
    """

    name: str
    us: float
    source: str


def overheads(fabric: Fabric, shape: Shape, op: HalfOp) -> list[Overhead]:
    """Return the costs of one operation in the order in which they arise."""
    costs = _before(fabric, shape, op)
    if shape.num_nodes > 1:
        costs += _messages(fabric, shape, op)
    else:
        costs.append(_release(fabric))
    costs.append(
        Overhead("poll", _us(fabric.sm.poll_ns.value + fabric.sm.l2_ns.value), "poll_ns + l2_ns")
    )
    return costs + (_last_copy(fabric, shape) if op == "dispatch" else _last_sum(fabric, shape))


def _us(nanoseconds: float) -> float:
    return nanoseconds / 1000


def _through_sm(fabric: Fabric, num_bytes: int) -> float:
    """Return the nanoseconds of a warp's bulk copy."""
    bulk = fabric.sm.bulk
    rounds = -(-num_bytes // int(bulk.bytes_in_flight.value))
    return bulk.issue_ns.value + rounds * bulk.load_ns.value


def _before(fabric: Fabric, shape: Shape, op: HalfOp) -> list[Overhead]:
    sm, nic = fabric.sm, fabric.nic
    word, l2 = sm.word_issue_ns.value, sm.l2_ns.value
    costs = [Overhead("epoch", _us(l2), "l2_ns")]
    if op == "dispatch":
        rounds = -(-shape.num_tokens * shape.num_topk // 32)
        source = f"l2_ns + 2 x {rounds} word_issue_ns (32 selections a round)"
        costs.append(Overhead("list of a peer's rows", _us(l2 + 2 * rounds * word), source))
    else:
        costs.append(Overhead("row's places", _us(3 * word), "3 word_issue_ns"))
    if shape.num_nodes > 1:
        posts = 2 if op == "dispatch" else 1
        posted = "entries and first row" if op == "dispatch" else "first row"
        source = f"{posts} nic.post_ns"
        costs.append(Overhead(f"post of {posted}", _us(posts * nic.post_ns.value), source))
    else:
        row = shape.dispatch_row if op == "dispatch" else shape.combine_row
        source = "bulk.issue_ns + bulk.load_ns for every bulk.bytes_in_flight"
        costs.append(
            Overhead("first row through its SM", _us(_through_sm(fabric, row.full_bytes)), source)
        )
    return costs


def _messages(fabric: Fabric, shape: Shape, op: HalfOp) -> list[Overhead]:
    """Return what the NIC spends on messages other than rows, at even routing."""
    num_far = shape.world_size - shape.ranks_per_node
    senders = shape.num_sms * SEND_WARPS.of(shape)
    _, far_parts = parts_of(shape, senders)
    rows = -(-shape.num_tokens * shape.num_topk // (shape.world_size * far_parts))
    signals = far_parts * max(-(-rows // FAR_BATCH.of(shape)), 1)
    entries = 1 if far_parts == 1 else far_parts * rows
    others = entries + shape.experts_per_rank if op == "dispatch" else 0
    count = num_far * (signals + others)
    return [
        Overhead(
            "entries, counts and signals",
            _us(count * fabric.nic.message_ns.value),
            f"{count} nic.message_ns",
        )
    ]


def _release(fabric: Fabric) -> Overhead:
    link, sm = fabric.nvlink, fabric.sm
    word = sm.word_issue_ns.value + sm.word_bytes.value / link.payload_gbs.value
    return Overhead(
        "acknowledgement and flag",
        _us(2 * link.latency_ns.value + word),
        "2 nvlink.latency_ns + word_issue_ns + word_bytes / nvlink.payload_gbs",
    )


def _last_copy(fabric: Fabric, shape: Shape) -> list[Overhead]:
    sm, num_bytes = fabric.sm, shape.dispatch_row.full_bytes
    written = 2 * num_bytes / fabric.hbm_gbs.value + 2 * sm.l2_ns.value
    entry = 4 * sm.word_issue_ns.value
    return [
        Overhead(
            "last row to its place",
            _us(entry + _through_sm(fabric, num_bytes) + written),
            "4 word_issue_ns + bulk.issue_ns + bulk.load_ns + bytes / hbm_gbs + 2 l2_ns",
        ),
        _end(fabric),
    ]


def _last_sum(fabric: Fabric, shape: Shape) -> list[Overhead]:
    sm = fabric.sm
    num_bytes = shape.num_topk * shape.combine_row.full_bytes
    part = num_bytes / RECV_WARPS.of(shape)
    rounds = -(-part // sm.ldst.bytes_in_flight.value)
    latency = sm.ldst.issue_ns.value + rounds * sm.ldst.load_ns.value
    listed = 3 * shape.num_topk * sm.word_issue_ns.value
    added = max(latency, num_bytes / fabric.copy_gbs("ldst"), num_bytes / sm.reduce_gbs.value)
    written = 2 * sm.l2_ns.value
    return [
        Overhead("team meets", _us(sm.block_sync_ns.value), "block_sync_ns"),
        Overhead(
            "last token's sum by one SM",
            _us(listed + added + written),
            "3 num_topk word_issue_ns + the greatest of ldst.load_ns for every "
            "ldst.bytes_in_flight, bytes / ldst.copy_gbs and bytes / reduce_gbs, + 2 l2_ns",
        ),
        _end(fabric),
    ]


def _end(fabric: Fabric) -> Overhead:
    return Overhead("block meets", _us(fabric.sm.block_sync_ns.value), "block_sync_ns")
