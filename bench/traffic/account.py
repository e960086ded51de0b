"""What a case's bytes come to: bounds, totals and rates, all counted from the routing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.records.record import Bytes, Gbs
from bench.traffic.bounds import (
    ByteTotals,
    Flits,
    HalfOp,
    PortBytes,
    bound_us,
    byte_totals,
    port_bytes,
)
from bench.traffic.plan import Plan
from comms.fabric import Fabric
from kernels.protocol import Protocol, Route
from kernels.shape import Shape


@dataclass(frozen=True, slots=True)
class Account:
    """Counts of one protocol on one routing and fabric."""

    plan: Plan
    shape: Shape
    fabric: Fabric
    protocol: Protocol

    def own_us(self, halves: Sequence[HalfOp]) -> float:
        """Return the least time for the bytes that the protocol must move."""
        return sum(bound_us(self._own(half, self._against(half)), self.fabric) for half in halves)

    def best_us(self, halves: Sequence[HalfOp]) -> float:
        """Return the least time for one copy per node over the rail, forwarded there.

        Rows are pushed or pulled, whichever has less against them.
        """
        ways = [Flits.of(self.fabric, pulled=pulled) for pulled in (False, True)]
        return sum(
            min(bound_us(self._best(half, against), self.fabric) for against in ways)
            for half in halves
        )

    def totals(self, halves: Sequence[HalfOp]) -> Bytes:
        """Return the world's bytes."""
        totals = ByteTotals(0, 0, 0, 0, 0)
        for half in halves:
            totals += byte_totals(
                self.plan,
                self.shape,
                self._own(half),
                granularity=self.protocol.granularity,
                op=half,
                splits=self.protocol.splits,
            )
        return Bytes(**asdict(totals))

    def rates(self, halves: Sequence[HalfOp], time_us: float) -> Gbs:
        """Return the rates at the busiest ports: bytes of each link, logical bytes of a rank."""
        ports = [self._own(half) for half in halves]
        total = sum(ports[1:], start=ports[0])
        copies = self.plan.copies
        rows = {"dispatch": self.shape.dispatch_row, "combine": self.shape.combine_row}
        row_bytes = sum(rows[half].logical_bytes for half in halves)
        most_rows = max(
            int(copies.sum(axis=0).max(initial=0)), int(copies.sum(axis=1).max(initial=0))
        )
        per_us = 1 / (1000 * time_us)
        return Gbs(
            logical=most_rows * row_bytes * per_us,
            nvlink=max(int(total.nvlink_out.max()), int(total.nvlink_in.max())) * per_us,
            rdma=max(int(total.nic_out.max()), int(total.nic_in.max())) * per_us,
        )

    def received_bytes(self, rank: int, halves: Sequence[HalfOp]) -> int:
        """Return the bytes of the rows that a rank receives, one per (token, rank)."""
        arriving, returning = self.plan.copies[:, rank].sum(), self.plan.copies[rank].sum()
        return sum(
            int(arriving) * self.shape.dispatch_row.stride_bytes
            if half == "dispatch"
            else int(returning) * self.shape.combine_row.stride_bytes
            for half in halves
        )

    def _against(self, op: HalfOp) -> Flits:
        """Return what goes against the protocol's rows."""
        return Flits.of(self.fabric, pulled=self.protocol.pulls and op == "combine")

    def _best(self, op: HalfOp, against: Flits) -> PortBytes:
        return port_bytes(
            self.plan, self.shape, route="rail", granularity="rank", op=op, against=against
        )

    def _own(self, op: HalfOp, against: Flits | None = None) -> PortBytes:
        """Return the bytes that ports must move for the protocol, with what goes against rows.

        Requests and acknowledgements take time, and are not counted as moved.
        """
        protocol, route = self.protocol, self.protocol.route
        if route == "pxn" and self.fabric.cross_rail == "spine":
            one_hop: Route = "one_hop"
            route = one_hop
        return port_bytes(
            self.plan,
            self.shape,
            route=route,
            granularity=protocol.granularity,
            op=op,
            splits=protocol.splits,
            against=against,
        )
