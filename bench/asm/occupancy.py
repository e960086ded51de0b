"""Blocks and warps that an SM holds at once, from what a kernel uses.

Limits are those of the CUDA programming guide (Compute Capabilities: technical specifications); how
registers and shared memory are handed out is what NVIDIA's occupancy calculator does
(`cuda_occupancy.h`, CUDA 13): registers to warps by 256 within each of four parts of an SM, shared
memory to blocks by 128 bytes after 1 KiB that the system takes, at the largest carve-out.
"""

from __future__ import annotations

from dataclasses import dataclass

from comms.errors import UsageError

SOURCE = (
    "limits: CUDA programming guide, Compute Capabilities; allocation: cuda_occupancy.h of CUDA 13"
)
_WARP = 32
_PARTS = 4
_REGISTER_UNIT = 256
_SHARED_UNIT_BYTES = 128
#: Shared memory of each block that the system takes, compute capability 8.0 and later.
RESERVED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class SmLimits:
    """What an SM of one architecture has.

    Attributes:
        max_warps: resident warps.
        max_blocks: resident blocks.
        registers: 32-bit registers, and the most of one block.
        shared_bytes: shared memory at the largest carve-out.
        block_shared_bytes: most shared memory of one block, what the system takes not counted.
        reports_reserved: whether tools count what the system takes to a kernel's static memory.
    """

    max_warps: int
    max_blocks: int
    shared_bytes: int
    block_shared_bytes: int
    reports_reserved: bool
    registers: int = 65536


LIMITS = {
    "sm_80": SmLimits(64, 32, 164 * 1024, 163 * 1024, reports_reserved=False),
    "sm_86": SmLimits(48, 16, 100 * 1024, 99 * 1024, reports_reserved=False),
    "sm_89": SmLimits(48, 24, 100 * 1024, 99 * 1024, reports_reserved=False),
    "sm_90": SmLimits(64, 32, 228 * 1024, 227 * 1024, reports_reserved=True),
    "sm_100": SmLimits(64, 32, 228 * 1024, 227 * 1024, reports_reserved=True),
    "sm_120": SmLimits(48, 24, 100 * 1024, 99 * 1024, reports_reserved=True),
}


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What an SM holds of one kernel at once.

    Attributes:
        blocks: blocks, 0 where not even one fits.
        warps: their warps.
        bound_by: what admits no more: `warps`, `blocks`, `registers` or `shared memory`.
    """

    blocks: int
    warps: int
    bound_by: str


def limits_of(arch: str) -> SmLimits:
    """Return what an SM has.

    Raises:
        UsageError: an architecture that is not listed.
    """
    if generation(arch) not in LIMITS:
        raise UsageError(f"no limits of {arch!r} are known; choose among {', '.join(LIMITS)}")
    return LIMITS[generation(arch)]


def generation(arch: str) -> str:
    """Return an architecture without what ties code to it alone: `sm_90` of `sm_90a`."""
    return arch.rstrip("af")


def occupancy(
    limits: SmLimits, *, num_threads: int, registers: int, shared_bytes: int
) -> Occupancy:
    """Return how many blocks of a kernel an SM holds.

    Args:
        limits: of the SM.
        num_threads: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.
    """
    num_warps = -(-num_threads // _WARP)
    most = {
        "warps": limits.max_warps // num_warps,
        "blocks": limits.max_blocks,
        "registers": _by_registers(limits, num_warps, registers),
        "shared memory": _by_shared(limits, shared_bytes),
    }
    bound_by = min(most, key=lambda name: most[name])
    return Occupancy(most[bound_by], most[bound_by] * num_warps, bound_by)


def _by_registers(limits: SmLimits, num_warps: int, registers: int) -> int:
    of_warp = _up(registers * _WARP, _REGISTER_UNIT)
    # The hardware admits a block as if each part held as many of its warps.
    if of_warp * _up(num_warps, _PARTS) > limits.registers:
        return 0
    return limits.registers // _PARTS // of_warp * _PARTS // num_warps


def _by_shared(limits: SmLimits, shared_bytes: int) -> int:
    if shared_bytes > limits.block_shared_bytes:
        return 0
    return limits.shared_bytes // _up(shared_bytes + RESERVED_BYTES, _SHARED_UNIT_BYTES)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
