"""Bytes that an SM must have under way, by Little's law: rate times latency.

The rate is what an SM has to carry: its share of NVLink's payload among the SMs of the budget, and
no more than its copy rate. The latency is a row's load (`load_ns`), and where rows are read from
other GPUs NVLink there and back. All are constants of the fabric (`comms/fabrics/*.toml`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.asm.occupancy import generation
from comms.fabric import Fabric, Mechanism, load_fabric

#: The fabric of an architecture where nobody names another; others have none.
_FABRICS = {"sm_80": "a800", "sm_90": "h800", "sm_100": "b200"}


@dataclass(frozen=True, slots=True)
class Needed:
    """What Little's law asks for.

    Attributes:
        rate_gbs: what an SM has to carry.
        latency_ns: from a load's issue to its data.
        num_bytes: their product.
    """

    rate_gbs: float
    latency_ns: float
    num_bytes: int


def fabric_of(arch: str) -> Fabric | None:
    """Return the fabric that bytes under way are compared with, None where there is none."""
    name = _FABRICS.get(generation(arch))
    return load_fabric(name) if name else None


def bytes_needed(fabric: Fabric, mechanism: Mechanism, num_sms: int, *, pulls: bool) -> Needed:
    """Return the bytes that each SM of a budget must have under way to fill NVLink.

    Args:
        fabric: rates and latencies.
        mechanism: what moves rows.
        num_sms: SMs of the budget.
        pulls: whether rows are read from other GPUs.
    """
    rate_gbs = min(fabric.copy_gbs(mechanism), fabric.nvlink.payload_gbs.value / num_sms)
    load = fabric.sm.bulk.load_ns if mechanism == "bulk" else fabric.sm.ldst.load_ns
    latency_ns = load.value + (2 * fabric.nvlink.latency_ns.value if pulls else 0.0)
    return Needed(rate_gbs, latency_ns, round(rate_gbs * latency_ns))
