"""Protocols whose kernels are CUDA C++: the same launches, parameters and windows."""

import inspect
from dataclasses import replace
from pathlib import Path

from kernels.knobs import too_many_warps
from kernels.protocol import (
    CxxKernel,
    Form,
    HostLaunch,
    KernelLaunch,
    Launches,
    Op,
    Protocol,
)
from kernels.shape import Shape

#: Most warps of a block whose kernels keep everything in registers: 128 for each thread.
MAX_WARPS = 16
#: A lane stands for a rank.
MAX_RANKS = 32
#: Experts of a rank that a warp counts in its shared memory (kernels.isa.cxx_kernel).
MAX_EXPERTS_PER_RANK = 2048


def in_cxx(protocol: Protocol) -> Protocol:
    """Return a protocol with kernels of CUDA C++.

    The kernel of a function `name` in `module.py` is the function `name` in `module.cu` beside it.
    """

    def launches(op: Op, form: Form) -> tuple[KernelLaunch | HostLaunch, ...]:
        return tuple(_in_cxx(launch) for launch in protocol.launches(op, form))

    def refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
        return protocol.refuses(shape, op, cross_rail=cross_rail) or _refuses(
            protocol.launches, shape
        )

    return replace(protocol, launches=launches, refuses=refuses, devices=("cuda",), impl="cupy")


def _in_cxx(launch: KernelLaunch | HostLaunch) -> KernelLaunch | HostLaunch:
    if isinstance(launch, HostLaunch):
        return launch
    module = Path(inspect.getsourcefile(launch.kernel) or "")
    return replace(launch, cxx=CxxKernel(module.with_suffix(".cu"), launch.kernel.__name__))


def _refuses(launches: Launches, shape: Shape) -> str | None:
    if shape.world_size > MAX_RANKS:
        return (
            f"in CUDA C++ a lane stands for a rank, of which there are {MAX_RANKS} at most, got "
            f"{shape.world_size}: use --impl numba"
        )
    if shape.experts_per_rank > MAX_EXPERTS_PER_RANK:
        return (
            f"in CUDA C++ a rank has at most {MAX_EXPERTS_PER_RANK} experts, got "
            f"{shape.experts_per_rank}: use --impl numba"
        )
    for op in ("dispatch", "combine"):
        for launch in launches(op, "fresh"):
            if isinstance(launch, KernelLaunch) and launch.warps(shape) > MAX_WARPS:
                return too_many_warps(
                    f"warps of {launch.name} in CUDA C++", launch.warps(shape), MAX_WARPS
                )
    return None
