"""How many SMs a protocol should need: the analytic model of DeepEP V2.

Source: the function by which DeepEP V2 chooses its SMs (`elastic.py`, lines 729 to 834): bytes that
SMs read and write for each byte that their rank receives, against what the slower of the links lets
a rank receive. It is for designs in which all SMs send: one hop on one node, and over several one
copy per node, forwarded there. It knows no latencies, flags or reductions, and its SM reads 200 and
writes 50 GB/s whatever the profile says.
"""

import math
from dataclasses import dataclass

from comms.fabric import Fabric

#: What one SM reads and writes in GB/s in that model.
SM_READ_GBS, SM_WRITE_GBS = 200.0, 50.0
#: Part of NVLink's data-sheet rate that it counts on, and its margin on SMs.
NVLINK_SHARE, MARGIN = 0.9, 1.25
#: Least SMs that it takes; their number is even.
LEAST_SMS = 4


@dataclass(frozen=True, slots=True)
class PerByte:
    """Bytes for each byte that a rank receives.

    Attributes:
        read: read by SMs.
        write: written by SMs.
        nvlink: that pass NVLink.
        rdma: that pass the NIC.
    """

    read: float
    write: float
    nvlink: float
    rdma: float


def expected_owners(num_experts: int, num_topk: int, block: int) -> float:
    """Return how many distinct owners the experts of a token have on average.

    Args:
        num_experts: experts of the layer.
        num_topk: experts of a token, each set of them equally likely.
        block: experts of an owner; the last one may have fewer.
    """
    sets = math.comb(num_experts, num_topk)
    owned = [min(block, num_experts - first) for first in range(0, num_experts, block)]
    return sum(1 - math.comb(num_experts - own, num_topk) / sets for own in owned)


def per_byte(num_nodes: int, ranks_per_node: int, num_experts: int, num_topk: int) -> PerByte:
    """Return the bytes of one hop on one node, or of one copy per node over several."""
    world_size = num_nodes * ranks_per_node
    experts_per_rank = -(-num_experts // world_size)
    ranks = expected_owners(num_experts, num_topk, experts_per_rank)
    if num_nodes == 1:
        return PerByte(read=1 / ranks, write=1, nvlink=1 - 1 / world_size, rdma=0)
    nodes = expected_owners(num_experts, num_topk, experts_per_rank * ranks_per_node)
    return PerByte(
        read=1 / ranks + nodes / ranks,
        write=1 / ranks + nodes / (ranks * num_nodes) + 1,
        nvlink=1 - 1 / ranks_per_node,
        rdma=nodes * (1 - 1 / num_nodes) / ranks,
    )


def model_sms(
    fabric: Fabric, num_nodes: int, ranks_per_node: int, num_experts: int, num_topk: int
) -> int | None:
    """Return the SMs that the model takes, or None where no link bounds anything.

    Args:
        fabric: whose data-sheet rates count (`raw_gbs`), as the model reads them from the driver.
        num_nodes: nodes of the world.
        ranks_per_node: ranks of a node.
        num_experts: experts of the layer.
        num_topk: experts of a token.
    """
    if not fabric.capped:
        return None
    moved = per_byte(num_nodes, ranks_per_node, num_experts, num_topk)
    links = (
        (NVLINK_SHARE * fabric.nvlink.raw_gbs.value, moved.nvlink),
        (fabric.nic.raw_gbs.value, moved.rdma),
    )
    received_gbs = min((gbs / traffic for gbs, traffic in links if traffic > 0), default=None)
    if received_gbs is None:
        return None
    busy = received_gbs * max(moved.read / SM_READ_GBS, moved.write / SM_WRITE_GBS)
    num_sms = max(math.ceil(busy * MARGIN), LEAST_SMS)
    return min(num_sms + num_sms % 2, fabric.num_sms)
