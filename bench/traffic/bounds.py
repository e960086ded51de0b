"""Bytes that an exchange must move through each port, and the least time that its links allow."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.traffic.hops import Hop, direct_hops, rail_hops
from bench.traffic.plan import Plan
from comms.fabric import Constant, Fabric
from kernels.protocol import Granularity, Route, Splits
from kernels.rows import RowLayout
from kernels.shape import Shape

Int64 = npt.NDArray[np.int64]
HalfOp = Literal["dispatch", "combine"]

#: One top-k entry on the wire: an int32 expert id and a float32 weight.
TOPK_ENTRY_BYTES = 8
_PS_PER_US = 10**6


@dataclass(frozen=True, slots=True, eq=False)
class PortBytes:
    """Physical bytes through the ports of every rank: padded rows, top-k entries, flits against.

    Words that synchronise are left out, so these are the least that a route needs.

    Attributes:
        nvlink_out: int64 `(R,)`.
        nvlink_in: int64 `(R,)`.
        nic_out: int64 `(R,)`.
        nic_in: int64 `(R,)`.
    """

    nvlink_out: Int64
    nvlink_in: Int64
    nic_out: Int64
    nic_in: Int64

    def __add__(self, other: "PortBytes") -> "PortBytes":
        return PortBytes(
            self.nvlink_out + other.nvlink_out,
            self.nvlink_in + other.nvlink_in,
            self.nic_out + other.nic_out,
            self.nic_in + other.nic_in,
        )


@dataclass(frozen=True, slots=True)
class ByteTotals:
    """Bytes of one operation over the world.

    Attributes:
        logical: every (token, destination rank) copy, the own rank's too, at the row's bytes
            without padding or top-k entries; the same for either granularity, and never of rows
            that are padding.
        logical_rdma: every (token, destination node) copy, the own node's too, at the same bytes.
        local: physical bytes of the rows that move between a rank and itself.
        nvlink: physical bytes sent over NVLink.
        rdma: physical bytes sent over NICs.
    """

    logical: int
    logical_rdma: int
    local: int
    nvlink: int
    rdma: int

    def __add__(self, other: "ByteTotals") -> "ByteTotals":
        return ByteTotals(
            self.logical + other.logical,
            self.logical_rdma + other.logical_rdma,
            self.local + other.local,
            self.nvlink + other.nvlink,
            self.rdma + other.rdma,
        )


@dataclass(frozen=True, slots=True)
class Flits:
    """What goes over NVLink against a row: a read is asked for, a write is acknowledged.

    Attributes:
        flit_bytes: bytes of one request or acknowledgement.
        packet_bytes: bytes of the row that it stands for.
    """

    flit_bytes: int
    packet_bytes: int

    @classmethod
    def of(cls, fabric: Fabric, *, pulled: bool) -> "Flits":
        """Return the requests or the acknowledgements of a fabric's SMs."""
        sm = fabric.sm
        if pulled:
            return cls(int(sm.read_request_bytes.value), int(sm.read_request_span_bytes.value))
        return cls(int(sm.write_ack_bytes.value), int(sm.write_packet_bytes.value))

    def per_row(self, num_bytes: int) -> int:
        """Return the bytes against a row of `num_bytes`."""
        return -(-num_bytes // self.packet_bytes) * self.flit_bytes


def port_bytes(
    plan: Plan,
    shape: Shape,
    *,
    route: Route,
    granularity: Granularity,
    op: HalfOp,
    splits: Splits = "exact",
    against: Flits | None = None,
) -> PortBytes:
    """Return the bytes that every port must move.

    Routes of a row from rank s to rank d of another node; on one node it always goes by NVLink:

    - `one_hop`: by NIC from s to d.
    - `pxn`: by NVLink to the rank of s's node with d's local rank, unless that is s, then by NIC.
    - `rail`: dispatch sends one row per (token, node) by NIC to the node's rank with s's local
      rank, which forwards a row by NVLink to each destination but itself. Combine goes the same way
      back: that rank gets the rows of its node by NVLink and sends one sum per (token, node).

    A dispatched row is `dispatch_row.full_bytes` and 8 bytes per top-k entry: all entries, or one
    for granularity `selection`; on the NIC hop of `rail` all in either. A combined row is
    `combine_row.full_bytes`. Rows that move as padding are like any other.

    Args:
        plan: counts of the routing.
        shape: sizes of the exchange.
        route: way of the rows.
        granularity: one row per (token, rank), or one per (token, selected expert).
        op: `"dispatch"` or `"combine"`.
        splits: the rows between every two ranks: those of the plan (`exact`), as many as between
            any two (`padded`), or `num_tokens` of the shape (`gathered`); `rail` has exact ones.
        against: what each row of an NVLink hop has against it, None for nothing.
    """
    assert splits == "exact" or route != "rail", f"{splits} rows have no tokens to share a copy"
    rows = _rows(plan, shape, granularity, splits)
    row_bytes = _row_bytes(shape, granularity, op)
    if route == "rail":
        node_row_bytes = _row_bytes(shape, "rank", op)
        nvlink, nic = rail_hops(plan, rows, row_bytes, node_row_bytes, reverse=op == "combine")
    else:
        moved = rows if op == "dispatch" else rows.T
        nvlink, nic = direct_hops(plan, moved, row_bytes, via_peer=route == "pxn")
    nvlink_out, nvlink_in = _ports(nvlink, against)
    # What a NIC acknowledges with is in its payload rate.
    nic_out, nic_in = _ports(nic, None)
    return PortBytes(nvlink_out, nvlink_in, nic_out, nic_in)


def byte_totals(
    plan: Plan,
    shape: Shape,
    ports: PortBytes,
    *,
    granularity: Granularity,
    op: HalfOp,
    splits: Splits = "exact",
) -> ByteTotals:
    """Return the world's bytes of an operation whose ports move `ports`."""
    logical_bytes = _layout(shape, op).logical_bytes
    local_rows = int(np.trace(_rows(plan, shape, granularity, splits)))
    return ByteTotals(
        logical=int(plan.copies.sum()) * logical_bytes,
        logical_rdma=int(plan.node_copies.sum()) * logical_bytes,
        local=local_rows * _row_bytes(shape, granularity, op),
        nvlink=int(ports.nvlink_out.sum()),
        rdma=int(ports.nic_out.sum()),
    )


def bound_us(ports: PortBytes, fabric: Fabric) -> float:
    """Return the least time for `ports` in microseconds, whole picoseconds rounded up.

    The greatest, over ports with bytes, of bytes / payload cap + the link's latency; 0.0 where no
    port has bytes.
    """
    return (
        max(
            _link_ps(
                ports.nvlink_out,
                ports.nvlink_in,
                fabric.nvlink.payload_gbs,
                fabric.nvlink.latency_ns,
            ),
            _link_ps(ports.nic_out, ports.nic_in, fabric.nic.payload_gbs, fabric.nic.latency_ns),
        )
        / _PS_PER_US
    )


def _link_ps(sent: Int64, received: Int64, payload_gbs: Constant, latency_ns: Constant) -> int:
    # Python's integers: bytes times 10**6 may pass 2**63.
    most = max(int(sent.max(initial=0)), int(received.max(initial=0)))
    if most == 0:
        return 0
    return -(-most * 10**6 // round(payload_gbs.value * 1000)) + round(latency_ns.value * 1000)


def _rows(plan: Plan, shape: Shape, granularity: Granularity, splits: Splits) -> Int64:
    """Return the rows that move between every two ranks, from source to owner."""
    rows = plan.copies if granularity == "rank" else plan.selections
    if splits == "exact":
        return rows
    most = int(rows.max(initial=0)) if splits == "padded" else shape.num_tokens
    return np.full_like(rows, most)


def _layout(shape: Shape, op: HalfOp) -> RowLayout:
    return shape.dispatch_row if op == "dispatch" else shape.combine_row


def _row_bytes(shape: Shape, granularity: Granularity, op: HalfOp) -> int:
    if op == "combine":
        return shape.combine_row.full_bytes
    entries = shape.num_topk if granularity == "rank" else 1
    return shape.dispatch_row.full_bytes + TOPK_ENTRY_BYTES * entries


def _ports(hop: Hop, against: Flits | None) -> tuple[Int64, Int64]:
    """Return bytes out of and into every rank's port."""
    sent, received = hop.rows.sum(axis=1), hop.rows.sum(axis=0)
    flit_bytes = against.per_row(hop.bytes_per_row) if against else 0
    return (
        sent * hop.bytes_per_row + received * flit_bytes,
        received * hop.bytes_per_row + sent * flit_bytes,
    )
