"""Grids of axes, how they expand into specs, and the named suites made of them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from bench.cases import CaseSpec
from bench.records.record import AxisValue, Form
from comms.errors import UsageError
from comms.fabric import CrossRail, End, load_fabric
from kernels.devices import MAX_CPU_SMS

if TYPE_CHECKING:
    from bench.workloads.workload import Workload
    from kernels.from_file import KernelFile

#: Devices that exist, with what they are for.
DEVICES = {
    "sim": "predictions in virtual time, anywhere",
    "cpu": "the same kernels in real memory, an MPI process per rank, on real clocks",
}


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Axes of a run: each combination of the values is one spec.

    Attributes:
        kernel: names, `name/variant`, or `path/to/file.py:name` for a kernel that is not in the
            project; all kernels where empty.
        cross_rail: replaces the profile's own where given.
        hidden: replaces the preset's where given, `num_experts` and `num_topk` likewise.
        knob: `NAME=VALUE` for knobs of kernels, which those that have them take.
        prefix: elements of each row that really move, None for all; the default is that of
            `kernels.rows`, which is not imported here because it loads NumPy.
    """

    kernel: tuple[str, ...] = ()
    form: tuple[Form, ...] = ("fresh",)
    device: str = "sim"
    fabric: tuple[str, ...] = ("h800",)
    cross_rail: CrossRail | None = None
    sm_copy: tuple[End, ...] = ("mid",)
    nodes: tuple[int, ...] = (1,)
    ranks_per_node: tuple[int, ...] = (8,)
    preset: tuple[str, ...] = ("deepseek-v3",)
    tokens: tuple[int, ...] = (4096,)
    hidden: int | None = None
    num_experts: int | None = None
    num_topk: int | None = None
    dispatch_dtype: tuple[Literal["fp8", "bf16"], ...] = ("fp8",)
    routing: tuple[str, ...] = ("uniform",)
    masked_ratio: float = 0.0
    seed: int = 0
    num_sms: tuple[int, ...] = (8,)
    skew_us: float = 0.0
    prefix: int | None = 192
    knob: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Ranks of the largest world of the grid."""
        return max(self.nodes) * max(self.ranks_per_node)

    def axes(self) -> dict[str, AxisValue | list[AxisValue]]:
        """Return the axes as plain values, for the record."""
        return msgspec.convert(msgspec.to_builtins(self), dict[str, AxisValue | list[AxisValue]])


#: What a run on a device is where nobody says otherwise. On `cpu` nothing caps, rows move whole,
#: an SM is a thread, and the baseline is the library itself and not the model of another. Of the
#: baselines' variants these are the two that rows are compared with.
DEFAULTS = {
    "sim": Grid(kernel=("direct", "nccl_like/dedup", "nccl_like/selection")),
    "cpu": Grid(
        device="cpu",
        kernel=("direct", "mpi/dedup", "mpi/selection"),
        fabric=("uncapped",),
        ranks_per_node=(2,),
        num_sms=(1,),
        prefix=None,
    ),
}


def default_grid(device: str) -> Grid:
    """Return the grid that flags replace axes of.

    Raises:
        UsageError: there is no such device.
    """
    if device not in DEFAULTS:
        raise UsageError(
            f"no device {device!r} in this version; choose one of {', '.join(DEVICES)}"
        )
    return DEFAULTS[device]


@dataclass(frozen=True, slots=True)
class Suite:
    """Grids that are run together, and one line about them."""

    about: str
    grids: tuple[Grid, ...]


#: SMs that the library takes where nobody limits it: `kernels.nccl_like.constants.LIBRARY_SMS`,
#: which is not imported here because its package loads Numba.
LIBRARY_SMS = 32


def _worlds(*, tokens_over_nodes: int, sm_copy: tuple[End, ...] = ("mid",)) -> tuple[Grid, ...]:
    """Return EP8 in one NVLink domain and EP16 over two nodes.

    The baseline also runs at its own choice of SMs, which is what rows are compared with.
    """
    many = (tokens_over_nodes,)
    library = (LIBRARY_SMS,)
    return (
        Grid(kernel=("direct",), num_sms=(8, 16), sm_copy=sm_copy),
        Grid(kernel=("nccl_like/dedup",), num_sms=(16, *library), sm_copy=sm_copy),
        Grid(kernel=("nccl_like/selection",), num_sms=library, sm_copy=sm_copy),
        Grid(nodes=(2,), kernel=("direct",), tokens=many, num_sms=(16,), sm_copy=sm_copy),
        Grid(
            nodes=(2,),
            kernel=("nccl_like/dedup",),
            tokens=many,
            num_sms=(16, *library),
            sm_copy=sm_copy,
        ),
        Grid(
            nodes=(2,),
            kernel=("nccl_like/selection",),
            tokens=many,
            num_sms=library,
            sm_copy=sm_copy,
        ),
    )


#: On real clocks: full rows of a model that fits any machine, a rank for each core of a small one
#: and twice as many.
_ON_CPU = tuple(
    msgspec.structs.replace(DEFAULTS["cpu"], ranks_per_node=(ranks,), tokens=(1024,))
    for ranks in (2, 4)
)

SUITES = {
    "main": Suite(
        "H800, DeepSeek-V3: EP8 with 4096 tokens per rank, EP16 (2 nodes x 8) with 1024; then 2 "
        "and 4 ranks of this machine's cores",
        (*_worlds(tokens_over_nodes=1024), *_ON_CPU),
    ),
    "quick": Suite(
        "H800, DeepSeek-V3: EP8 and EP16 with 128 tokens per rank and 8 SMs",
        tuple(
            Grid(nodes=(nodes,), tokens=(128,), kernel=kernel, num_sms=num_sms)
            for nodes in (1, 2)
            for kernel, num_sms in (
                (("direct",), (8,)),
                (("nccl_like/dedup", "nccl_like/selection"), (8, LIBRARY_SMS)),
            )
        ),
    ),
    "cpu": Suite("2 and 4 ranks of this machine's cores, 1024 tokens per rank", _ON_CPU),
    "reference": Suite(
        "main with 4096 tokens everywhere, over the range of an SM's copy rate: results/reference",
        _worlds(tokens_over_nodes=4096, sm_copy=("mid", "low", "high")),
    ),
}


def suite(name: str) -> Suite:
    """Return the suite called `name`.

    Raises:
        UsageError: there is no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"no suite {name!r}; choose one of {', '.join(SUITES)}")
    return SUITES[name]


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
    variants = _kernel_variants(grid.kernel)
    fabrics = [
        load_fabric(name, cross_rail=grid.cross_rail).at(end)
        for name in grid.fabric
        for end in grid.sm_copy
    ]
    specs = [
        CaseSpec(
            kernel=kernel,
            variant=variant,
            form=form,
            device=grid.device,
            fabric=fabric,
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            workload=workload,
            num_sms=num_sms,
            skew_us=grid.skew_us,
            source=source,
        )
        for nodes, ranks_per_node, workload, (kernel, variant, source), form, num_sms, fabric in (
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
    if grid.device == "sim":
        return
    for axis in ("fabric", "sm_copy", "skew_us", "prefix"):
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


def _kernel_variants(asked: tuple[str, ...]) -> list[tuple[str, str, KernelFile | None]]:
    from kernels.registry import kernel_names, variants

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
        found.extend((kernel, each, None) for each in ([variant] if slash else variants(kernel)))
    return found


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
