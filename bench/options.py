"""The flags of `epbench run`, how they become axes of grids, and the names they accept.

Lists are comma separated. A flag that is given replaces its axis in every grid of the suite.
"""

from pathlib import Path
from typing import get_args

import click

from bench.grid import DEVICES, Grid
from bench.records.record import Form, Op
from bench.suites import SUITES
from bench.timing import Timing
from comms.fabric import CrossRail, End, fabric_names, load_fabric


class Listed(click.ParamType[tuple[object, ...]]):
    """Comma separated items, each converted by the type `item`."""

    def __init__(self, item: click.ParamType[object]) -> None:
        self.item = item
        self.name = item.name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[object, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self.item.convert(part.strip(), param, ctx) for part in str(value).split(","))


class _Word(click.ParamType[str]):
    """Any text but the empty one."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("an empty name", param, ctx)
        return value


class _Prefix(click.ParamType[int | None]):
    """A number of elements, or `full`."""

    name = "n|full"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "full":
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number of at least 1 nor full.", param, ctx)
        return number


def _flattened(
    context: click.Context, option: click.Parameter, lists: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    """Return the items of an option that was given several times."""
    return tuple(item for items in lists for item in items)


COUNTS = Listed(click.IntRange(min=1))
_NAMES = Listed(_Word())
SEEDS = Listed(click.IntRange(min=0))
_DEFAULT = Grid()


def _axis(*names: str, type_: click.ParamType[object], metavar: str, text: str) -> click.Option:
    """Make the option of the field of `Grid` that is the last of `names`."""
    value = getattr(_DEFAULT, names[-1])
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    told = text if shown in ("", None) else f"{text} Default: {shown}."
    return click.Option(names, type=type_, default=value, metavar=metavar, help=told)


GRID_OPTIONS = (
    _axis(
        "--device", "device", type_=_Word(), metavar="NAME", text="Device that runs the kernels."
    ),
    _axis(
        "--fabric",
        "fabric",
        type_=_NAMES,
        metavar="NAME,...",
        text="GPU and links, see `epbench list`.",
    ),
    _axis("--nodes", "nodes", type_=COUNTS, metavar="N,...", text="Nodes of the world."),
    _axis(
        "--ranks-per-node",
        "ranks_per_node",
        type_=COUNTS,
        metavar="N,...",
        text="Ranks (GPUs) of a node.",
    ),
    _axis(
        "--preset", "preset", type_=_NAMES, metavar="NAME,...", text="Model, see `epbench list`."
    ),
    _axis(
        "--tokens",
        "--num-tokens",
        "tokens",
        type_=Listed(click.IntRange(min=0)),
        metavar="N,...",
        text="Tokens of a rank.",
    ),
    _axis(
        "--hidden",
        "hidden",
        type_=click.IntRange(min=1),
        metavar="N",
        text="Instead of the preset's.",
    ),
    _axis(
        "--num-experts",
        "--experts",
        "num_experts",
        type_=click.IntRange(min=1),
        metavar="N",
        text="Instead of the preset's.",
    ),
    _axis(
        "--num-topk",
        "--top-k",
        "num_topk",
        type_=click.IntRange(min=1),
        metavar="N",
        text="Instead of the preset's.",
    ),
    _axis(
        "--kernel",
        "kernel",
        type_=_NAMES,
        metavar="NAME,...",
        text="Kernels, kernel/variant, or path/to/file.py:name for your own. Default: all kernels, "
        "all variants.",
    ),
    _axis(
        "--impl",
        "impl",
        type_=Listed(click.Choice(["numba", "cupy"])),
        metavar="numba,cupy",
        text="What kernels are made of: Python, or CUDA C++ for device cuda.",
    ),
    _axis(
        "--num-sms",
        "num_sms",
        type_=COUNTS,
        metavar="N,...",
        text="SMs reserved for communication.",
    ),
    _axis(
        "--form",
        "form",
        type_=Listed(click.Choice(get_args(Form))),
        metavar="fresh,cached",
        text="Counts exchanged or reused.",
    ),
    _axis(
        "--dispatch-dtype",
        "dispatch_dtype",
        type_=Listed(click.Choice(["fp8", "bf16"])),
        metavar="fp8,bf16",
        text="Rows of dispatch; combine is bf16.",
    ),
    _axis(
        "--routing",
        "routing",
        type_=_NAMES,
        metavar="NAME,...",
        text="Who selects which expert, see `epbench list`.",
    ),
    _axis(
        "--masked-ratio",
        "masked_ratio",
        type_=click.FloatRange(0.0, 1.0),
        metavar="X",
        text="Part of the selections that name no expert.",
    ),
    _axis(
        "--seed", "seed", type_=click.IntRange(min=0), metavar="N", text="Seed of routing and data."
    ),
    _axis(
        "--cross-rail",
        "cross_rail",
        type_=click.Choice(get_args(CrossRail)),
        metavar="spine|forbidden",
        text="Whether NIC i reaches NIC j of another node, instead of the fabric's.",
    ),
    _axis(
        "--sm-copy",
        "sm_copy",
        type_=Listed(click.Choice(get_args(End))),
        metavar="low,mid,high",
        text="Which end of the range of the SM's copy rate.",
    ),
    _axis(
        "--skew-us",
        "skew_us",
        type_=click.FloatRange(min=0.0),
        metavar="X",
        text="Launch skew between ranks.",
    ),
    _axis(
        "--prefix",
        "prefix",
        type_=_Prefix(),
        metavar="N|full",
        text="Elements of each row that really move; costs are always those of the full row.",
    ),
    click.Option(
        ["--knob"],
        type=_NAMES,
        multiple=True,
        callback=_flattened,
        metavar="NAME=VALUE,...",
        help="Knobs of kernels, see `epbench list`; each kernel takes those that it has.",
    ),
)

_RANKS = click.Option(
    ["--ranks"],
    type=COUNTS,
    metavar="N,...",
    help="Ranks of the world, instead of --ranks-per-node. Default on cpu: those launched, or 2.",
)

TIMING_OPTIONS = (
    _RANKS,
    click.Option(
        ["--iters", "--iterations", "-n", "iters"],
        type=click.IntRange(min=0),
        default=Timing().num_iters,
        metavar="N",
        help=f"Timed iterations on real clocks. Default: {Timing().num_iters}.",
    ),
    click.Option(
        ["--warmup", "--warmup-iters", "-w", "warmup"],
        type=click.IntRange(min=0),
        default=Timing().num_warmup,
        metavar="N",
        help=f"Iterations before them. Default: {Timing().num_warmup}.",
    ),
    click.Option(
        ["--check"],
        type=click.Choice(["ends", "each"]),
        default=Timing().check,
        metavar="ends|each",
        help="On real clocks, check a run before the iterations and the last of them, or each one "
        f"on data of its own. Default: {Timing().check}.",
    ),
    click.Option(
        ["--timeout", "-T"],
        type=click.FloatRange(min=0.1),
        default=Timing().timeout_s,
        metavar="SECONDS",
        help="Longest wait of a kernel or of a rank on real clocks. Default: "
        f"{Timing().timeout_s:g}.",
    ),
)

OUTPUT_OPTIONS = (
    click.Option(["--suite"], metavar="NAME", help="Named suite, see `epbench list`."),
    click.Option(
        ["--tuned"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Turn knobs as `epbench tune` has found them for the same kernel, world, tokens and "
        "SMs; what is not in the file runs with its defaults.",
    ),
    click.Option(
        ["--json"], type=click.Path(path_type=Path), metavar="FILE", help="Write the run here too."
    ),
    click.Option(
        ["--results"],
        type=click.Path(path_type=Path),
        default=Path("results"),
        metavar="DIR",
        help="Folder of all results. Default: results.",
    ),
)

TRACE_OPTIONS = (
    _RANKS,
    click.Option(
        ["--op"],
        type=click.Choice(get_args(Op)),
        default="pair",
        metavar="|".join(get_args(Op)),
        help="Operation to record. Default: pair.",
    ),
    click.Option(
        ["--out", "-o", "out"],
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("trace.json.gz"),
        metavar="FILE",
        help="Trace to write, compressed where it ends with .gz. Default: trace.json.gz.",
    ),
    click.Option(
        ["--trace-ranks"],
        type=Listed(click.IntRange(min=0)),
        metavar="N,...",
        help="Ranks whose warps and ports are recorded. Default: all of up to 8, else the first "
        "node's.",
    ),
    click.Option(
        ["--max-records"],
        type=click.IntRange(min=1),
        default=2**21,
        metavar="N",
        help="Room for records of 136 bytes; those that find none are counted. Default: 2097152.",
    ),
)


def catalogue() -> str:
    """Return every name that a flag accepts, one a line under the flag."""
    from bench.workloads.presets import PRESETS
    from bench.workloads.routing import ROUTINGS
    from kernels.registry import describe, kernel_names, variants

    kernels = {
        name: f"{describe(name)} Variants: {', '.join(variants(name))}." for name in kernel_names()
    }
    presets = {
        name: f"hidden {model.hidden}, {model.num_experts} experts, top-{model.num_topk}"
        for name, model in PRESETS.items()
    }
    sections = {
        "--kernel": kernels,
        "--device": DEVICES,
        "--fabric": {name: load_fabric(name).gpu for name in fabric_names()},
        "--preset": presets,
        "--routing": ROUTINGS,
        "--suite": {name: suite.about for name, suite in SUITES.items()},
        "--knob": _knobs(),
    }
    lines = []
    for flag, names in sections.items():
        width = max(map(len, names), default=0)
        lines += [f"{flag}:", *(f"  {name:{width}}  {about}" for name, about in names.items()), ""]
    return "\n".join(lines[:-1]) + "\n"


def _knobs() -> dict[str, str]:
    """Return what each knob of each variant is, by `kernel/variant name`."""
    from kernels.registry import find_protocol, kernel_names, variants

    found = {}
    for kernel in kernel_names():
        for variant in variants(kernel):
            for knob in find_protocol(kernel, variant).knobs:
                default = "by shape" if callable(knob.default) else knob.default
                choices = ", ".join(map(str, knob.choices))
                found[f"{kernel}/{variant} {knob.name}"] = (
                    f"{knob.about}. Default: {default}; tuning tries {choices}."
                )
    return found
