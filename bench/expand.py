"""How grids of axes expand into specs, one for each combination that the devices have."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.cases import CaseSpec
from bench.grid import Grid, default_grid
from bench.records.record import Impl
from comms.errors import UsageError
from comms.fabric import ONE_CARD, load_fabric
from kernels.devices import MAX_CPU_SMS

if TYPE_CHECKING:
    from bench.workloads.workload import Workload
    from kernels.from_file import KernelFile


def expand(grids: Iterable[Grid]) -> list[CaseSpec]:
    """Return the specs of the grids in order, each once.

    Raises:
        UsageError: an unknown name, an impossible shape or more SMs than the GPU has.
    """
    from bench.knobs import knob_values, turn

    expanded = [(grid.knob, _expand_one(grid)) for grid in grids]
    everything = [spec for _, found in expanded for spec in found]
    specs: dict[str, CaseSpec] = {}
    for given, found in expanded:
        turned = turn(found, knob_values(given, everything)) if given else found
        for spec in turned:
            specs.setdefault(spec.case_id("pair"), spec)
    return list(specs.values())


def _expand_one(grid: Grid) -> list[CaseSpec]:
    _refuse_axes(grid)
    variants = _made_of(_kernel_variants(grid.kernel, grid.device), grid.impl)
    fabrics = [
        load_fabric(name, cross_rail=grid.cross_rail).at(end)
        for name in grid.fabric
        for end in grid.sm_copy
    ]
    specs = [
        CaseSpec(
            kernel=made[0],
            variant=made[1],
            form=form,
            device=grid.device,
            fabric=fabric,
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            workload=workload,
            num_sms=num_sms,
            skew_us=grid.skew_us,
            source=made[2],
            impl=made[3],
        )
        for nodes, ranks_per_node, workload, made, form, num_sms, fabric in (
            itertools.product(
                grid.nodes,
                grid.ranks_per_node,
                _workloads(grid),
                variants,
                grid.form,
                grid.num_sms,
                fabrics,
            )
        )
    ]
    for spec in specs:
        shape = spec.shape()
        if spec.source:
            from kernels.well_formed import refuse_malformed

            refuse_malformed(spec.source, spec.variant, shape)
        if spec.device == "cpu" and spec.num_sms > MAX_CPU_SMS:
            raise UsageError(
                f"num_sms must be at most {MAX_CPU_SMS} on device cpu, where an SM is a thread, "
                f"got {spec.num_sms}"
            )
        if spec.device == "sim" and spec.num_sms > spec.fabric.num_sms:
            raise UsageError(
                f"num_sms must be at most the {spec.fabric.num_sms} SMs of {spec.fabric.gpu}, "
                f"got {spec.num_sms}"
            )
    return specs


def _refuse_axes(grid: Grid) -> None:
    """Refuse axes that a device does not have."""
    expected = default_grid(grid.device)
    if grid.device != "cuda" and ONE_CARD in grid.fabric:
        raise UsageError(f"fabric {ONE_CARD} is for device cuda, not for {grid.device}")
    if grid.device == "sim":
        return
    # On GPUs a fabric tells the bounds, and is refused where they are others.
    fabric = () if grid.device == "cuda" else ("fabric",)
    for axis in (*fabric, "sm_copy", "skew_us", "prefix"):
        value, only = getattr(grid, axis), getattr(expected, axis)
        if value != only:
            got = ",".join(map(str, value)) if isinstance(value, tuple) else value
            told = {None: "full"}.get(only, ",".join(only) if isinstance(only, tuple) else only)
            raise UsageError(
                f"{axis} must be {told} on device {grid.device}, whose clocks, links and rows are "
                f"real: leave it out, got {got}"
            )


def _workloads(grid: Grid) -> list[Workload]:
    from bench.workloads.presets import preset
    from bench.workloads.workload import Workload

    workloads = []
    for name, dtype, tokens, routing in itertools.product(
        grid.preset, grid.dispatch_dtype, grid.tokens, grid.routing
    ):
        model = preset(name)
        workloads.append(
            Workload(
                preset=name,
                num_tokens=tokens,
                hidden=model.hidden if grid.hidden is None else grid.hidden,
                num_experts=model.num_experts if grid.num_experts is None else grid.num_experts,
                num_topk=model.num_topk if grid.num_topk is None else grid.num_topk,
                num_groups=model.num_groups,
                num_topk_groups=model.num_topk_groups,
                dispatch_dtype=dtype,
                combine_dtype="bf16",
                routing=routing,
                seed=grid.seed,
                masked_ratio=grid.masked_ratio,
                prefix=grid.prefix,
            )
        )
    return workloads


def _kernel_variants(
    asked: tuple[str, ...], device: str
) -> list[tuple[str, str, KernelFile | None]]:
    """Return kernels with their variants: those asked for, else those that the device has.

    Of a kernel that the device has not at all they are all variants, which then say so.
    """
    from kernels.registry import find_protocol, kernel_names, variants

    names = kernel_names()
    found: list[tuple[str, str, KernelFile | None]] = []
    for item in asked or names:
        if ":" in item or item.endswith(".py"):
            found.extend(_from_file(item, names))
            continue
        kernel, slash, variant = item.partition("/")
        if kernel not in names:
            raise UsageError(f"no kernel {kernel!r}{_nearest(kernel, names)}")
        if slash and variant not in variants(kernel):
            raise UsageError(
                f"no variant {variant!r} of {kernel}{_nearest(variant, variants(kernel))}"
            )
        known = [each for each in variants(kernel) if device in find_protocol(kernel, each).devices]
        chosen = [variant] if slash else known or variants(kernel)
        found.extend((kernel, each, None) for each in chosen)
    return found


def _made_of(
    found: list[tuple[str, str, KernelFile | None]], asked: tuple[Impl, ...]
) -> list[tuple[str, str, KernelFile | None, Impl]]:
    """Return kernels in each of the ways asked for that they are written in.

    Baselines and kernels of files are what they are.

    Raises:
        UsageError: a kernel is written in none of them.
    """
    if asked == ("numba",):
        return [(kernel, variant, source, "numba") for kernel, variant, source in found]
    from kernels.registry import find_protocol, impls

    made: list[tuple[str, str, KernelFile | None, Impl]] = []
    plain: tuple[Impl, ...] = ("numba",)
    for kernel, variant, source in found:
        is_plain = source is not None or find_protocol(kernel, variant).is_baseline
        known = () if is_plain else impls(kernel, variant)
        ways: list[Impl] = [impl for impl in asked if impl in known]
        if not ways and not is_plain:
            find_protocol(kernel, variant, None, asked[0])
        made += [(kernel, variant, source, impl) for impl in ways or plain]
    return made


def _from_file(asked: str, names: list[str]) -> list[tuple[str, str, KernelFile | None]]:
    from kernels.from_file import load_kernel_file

    source, chosen = load_kernel_file(asked)
    if source.kernel in names:
        raise UsageError(
            f"{source.path}:{source.name} calls its kernel {source.kernel}, which is the name of a "
            "built-in one; give it another"
        )
    return [(source.kernel, variant, source) for variant in chosen]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant or ';'} known: {', '.join(known)}"
