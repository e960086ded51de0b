"""What an operation moves, counted as V1 counts it and as ports see it."""

from dataclasses import dataclass

from bench.traffic.bounds import HalfOp, PortBytes, port_bytes
from bench.traffic.plan import Plan
from bench.validation.question import WAYS, Question
from kernels.shape import Shape

#: A header of V1's low-latency messages.
_MESSAGE_HEADER_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Bytes of one operation.

    V1 counts every row, those that stay on the rank too: a row for each (token, rank), on NICs for
    each (token, node); its low-latency kernels have one rate, of a row for each selection.

    Attributes:
        logical_nvlink: bytes that V1 counts over NVLink, mean of the ranks.
        logical_rdma: likewise over NICs, 0 where there is one node.
        ports: rows through each port, without what acknowledges them.
        lane_bytes: logical bytes that pass one SM of a channel, 0 where all SMs do everything.
    """

    logical_nvlink: float
    logical_rdma: float
    ports: PortBytes
    lane_bytes: float

    @property
    def nvlink(self) -> int:
        """Bytes of the fullest NVLink port."""
        return max(int(self.ports.nvlink_out.max()), int(self.ports.nvlink_in.max()))

    @property
    def rdma(self) -> int:
        """Bytes of the fullest NIC."""
        return max(int(self.ports.nic_out.max()), int(self.ports.nic_in.max()))


def traffic_of(question: Question, op: HalfOp, plan: Plan, shape: Shape) -> Traffic:
    """Return the bytes of an operation on a routing."""
    way = WAYS[question.kernel]
    row_bytes = (shape.dispatch_row if op == "dispatch" else shape.combine_row).logical_bytes
    ports = port_bytes(plan, shape, route=way.route, granularity=way.granularity, op=op)
    if way.granularity == "selection":
        header = _MESSAGE_HEADER_BYTES if op == "dispatch" else 0
        logical = float(plan.selections.sum()) / plan.world_size * (row_bytes + header)
        return Traffic(logical, logical, ports, 0.0)
    logical = float(plan.copies.sum()) / plan.world_size * row_bytes
    rdma = float(plan.node_copies.sum()) / plan.world_size * row_bytes
    channels = shape.num_sms // 2
    return Traffic(logical, rdma if plan.num_nodes > 1 else 0.0, ports, logical / channels)
