"""What is compiled: launches of kernels, with the warps that they have in a world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from bench.expand import expand
from bench.grid import Grid
from bench.labels import kernel_label
from bench.traffic.bounds import HalfOp
from comms.errors import UsageError
from kernels.protocol import KernelLaunch
from kernels.registry import find_protocol, impls, kernel_names, variants

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from kernels.protocol import Protocol

#: Worlds in which a kernel's warps are counted: the first of these nodes and tokens with which it
#: runs.
WORLDS = Grid(nodes=(1, 2), tokens=(4096, 128))
IMPLS = ("numba", "cupy")


@dataclass(frozen=True, slots=True)
class Target:
    """One launch of a kernel.

    Attributes:
        kernel: kernel and variant, with the file that it is from if that is not the repository's.
        impl: what it is made of.
        op: the operation that it is part of.
        launch: what is compiled.
        num_warps: of a block.
        num_sms: SMs that it is launched on, None for all of the GPU.
        pulls: whether it reads rows of other GPUs.
    """

    kernel: str
    impl: Literal["numba", "cupy", "library"]
    op: HalfOp
    launch: KernelLaunch = field(repr=False)
    num_warps: int
    num_sms: int | None
    pulls: bool


def targets_of(grid: Grid, impls: Sequence[str] = IMPLS) -> list[Target]:
    """Return the launches of a grid's kernels, each once.

    Args:
        grid: kernels, and worlds in the order in which they are tried.
        impls: what the kernels may be made of.

    Raises:
        UsageError: there is no such kernel, it has no launch, or it runs in none of the worlds.
    """
    specs: dict[str, list[CaseSpec]] = {}
    for spec in expand([msgspec.structs.replace(grid, impl=tuple(impls))]):
        specs.setdefault(spec.kernel_label(), []).append(spec)
    chosen = {name: found for name, found in specs.items() if found[0].protocol().impl in impls}
    if not chosen:
        told = ", ".join(f"{name} ({found[0].protocol().impl})" for name, found in specs.items())
        raise UsageError(f"no kernel of --impl {','.join(impls)} among {told}; {_offered()}")
    targets = [
        target for name, found in chosen.items() for target in _launches(_first(name, found))
    ]
    if not targets:
        raise UsageError(f"{', '.join(chosen)}: no launch is compiled, the host makes all steps")
    return targets


def targets_of_all(grid: Grid | None = None, impls: Sequence[str] = IMPLS) -> list[Target]:
    """Return the launches of every kernel that is compiled for GPUs.

    Args:
        grid: worlds, as for `targets_of`; its kernels are ignored.
        impls: what the kernels may be made of.
    """
    names = [
        f"{protocol.kernel}/{protocol.variant}"
        for protocol in _registered()
        if protocol.impl in impls
        if "cuda" in protocol.devices or not protocol.is_baseline
    ]
    worlds = grid or WORLDS
    return targets_of(msgspec.structs.replace(worlds, kernel=tuple(dict.fromkeys(names))), impls)


def _first(name: str, specs: Sequence[CaseSpec]) -> CaseSpec:
    """Return the first spec that a kernel does not refuse."""
    reasons = []
    for spec in specs:
        refuses, shape, rails = spec.protocol().refuses, spec.shape(), spec.fabric.cross_rail
        reason = refuses(shape, "dispatch", cross_rail=rails)
        if reason is None:
            return spec
        reasons.append(reason)
    raise UsageError(f"{name}: {'; '.join(dict.fromkeys(reasons))}")


def _launches(spec: CaseSpec) -> list[Target]:
    protocol, shape = spec.protocol(), spec.shape()
    name = kernel_label(spec.kernel, spec.variant, spec.source.path if spec.source else None)
    return [
        Target(
            kernel=name,
            impl=protocol.impl,
            op=op,
            launch=launch,
            num_warps=launch.warps(shape),
            num_sms=spec.num_sms if launch.sms == "comm" else None,
            pulls=protocol.pulls and op == "combine",
        )
        for op in get_args(HalfOp)
        for launch in protocol.launches(op, spec.form)
        if isinstance(launch, KernelLaunch)
    ]


def _offered() -> str:
    """Return what the registry offers by implementation."""
    offered: dict[str, list[str]] = {}
    for protocol in _registered():
        offered.setdefault(protocol.impl, []).append(f"{protocol.kernel}/{protocol.variant}")
    told = (f"{impl}: {', '.join(names)}" for impl, names in offered.items() if impl in IMPLS)
    return f"there are {'; '.join(told)}"


def _registered() -> list[Protocol]:
    return [
        find_protocol(kernel, variant, None, impl)
        for kernel in kernel_names()
        for variant in variants(kernel)
        for impl in impls(kernel, variant)
    ]
