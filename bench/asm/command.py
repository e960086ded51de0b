"""`epbench asm`: its flags, and what it does with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from bench.options import COUNTS, GRID_OPTIONS, Listed
from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.asm.examine import Asked
    from bench.pages.tables import Page

#: Named once more in `bench.asm.targets`, which takes long to import.
_NODES = (1, 2)
_TOKENS = (4096, 128)
_ARCHES = ("sm_90",)
_IMPLS = ("numba", "cupy")

_KNOB = next(option for option in GRID_OPTIONS if option.name == "knob")
OPTIONS = (
    click.Argument(["kernels"], nargs=-1, metavar="[KERNEL]..."),
    click.Option(["--all", "wants_all"], is_flag=True, help="Every kernel for GPUs."),
    click.Option(
        ["--arch"],
        type=Listed(click.STRING),
        default=_ARCHES,
        metavar="NAME,...",
        help="Architectures to compile for. Default: sm_90.",
    ),
    click.Option(
        ["--impl"],
        type=Listed(click.Choice(_IMPLS)),
        default=_IMPLS,
        metavar="numba,cupy",
        help="What kernels are made of: Python by numba-cuda, or CUDA C++ that CuPy loads. "
        "Default: both.",
    ),
    click.Option(
        ["--op"],
        type=click.Choice(["dispatch", "combine", "pair"]),
        default="pair",
        metavar="dispatch|combine|pair",
        help="Operations whose launches are compiled. Default: pair, both.",
    ),
    _KNOB,
    click.Option(
        ["--nodes"],
        type=COUNTS,
        default=_NODES,
        metavar="N,...",
        help="Nodes of the world, which may decide how many warps a block has; of several the "
        "first on which a kernel runs. Default: 1,2.",
    ),
    click.Option(
        ["--tokens", "--num-tokens", "tokens"],
        type=COUNTS,
        default=_TOKENS,
        metavar="N,...",
        help="Tokens of a rank, likewise. Default: 4096,128.",
    ),
    click.Option(
        ["--ranks-per-node"],
        type=click.IntRange(min=1),
        default=8,
        metavar="N",
        help="Ranks of a node. Default: 8.",
    ),
    click.Option(
        ["--num-sms"],
        type=click.IntRange(min=1),
        default=8,
        metavar="N",
        help="SMs of the budget, over which NVLink's rate is shared. Default: 8.",
    ),
    click.Option(
        ["--fabric"],
        metavar="NAME",
        help="GPU and links whose rates and latencies bytes under way are compared with. Default: "
        "h800 for sm_90, a800 for sm_80, b200 for sm_100.",
    ),
    click.Option(["--json", "form"], flag_value="json", help="As one JSON object."),
    click.Option(["--ptx", "form"], flag_value="ptx", help="The PTX after linking, as text."),
    click.Option(["--sass", "form"], flag_value="sass", help="The machine code, as text."),
    click.Option(["--markdown", "form"], flag_value="markdown", help="As Markdown tables."),
    click.Option(
        ["--diff"],
        metavar="REV",
        help="Compile the same kernels of another git revision, and show both.",
    ),
)


#: Flags that say what is compiled, which another revision is given too.
_COMPILING = (
    "wants_all",
    "arch",
    "impl",
    "op",
    "knob",
    "nodes",
    "tokens",
    "ranks_per_node",
    "num_sms",
    "fabric",
)


def asm(context: click.Context, say: Callable[[str], None], show: Callable[[Page], None]) -> None:
    """Compile the kernels that the flags name and tell what became of them.

    Args:
        context: the parsed command.
        say: writes to standard output.
        show: prints a page.

    Raises:
        EpbenchError: it did not end well.
    """
    flags = context.params
    if flags["diff"] and flags["form"] in ("ptx", "sass"):
        raise UsageError(
            f"--diff compares figures and --{flags['form']} prints text: give one of them"
        )
    asked = _asked(flags)
    if flags["form"] in ("ptx", "sass"):
        _say_texts(asked, flags["form"], say)
        return
    from bench.asm.examine import examine
    from bench.asm.page import asm_page

    examined = examine(asked, _tell)
    told = msgspec.to_builtins(examined)
    page: Page = asm_page(examined)
    if flags["diff"]:
        from bench.asm.compare import compare_page
        from bench.asm.revision import kernels_at

        before = kernels_at(flags["diff"], flags["kernels"], _given(context))
        told["revision"] = {"name": flags["diff"], "kernels": before}
        page = compare_page(flags["diff"], before, told["kernels"])
    if flags["form"] == "json":
        say(f"{json.dumps(told, indent=2)}\n")
    elif flags["form"] == "markdown":
        from bench.pages import render

        say(render.markdown(page))
    else:
        show(page)


def _asked(flags: dict[str, Any]) -> Asked:
    from bench.asm.examine import Asked
    from bench.asm.targets import targets_of, targets_of_all
    from bench.grid import Grid
    from comms.fabric import load_fabric

    if flags["wants_all"] == bool(flags["kernels"]):
        raise UsageError("name kernels, for example direct/push, or give --all")
    if flags["fabric"] and len(flags["arch"]) > 1:
        raise UsageError(
            f"--fabric {flags['fabric']} is one GPU, --arch {','.join(flags['arch'])} are several: "
            "give one --arch"
        )
    fabric = load_fabric(flags["fabric"]) if flags["fabric"] else None
    grid = Grid(
        kernel=flags["kernels"],
        nodes=flags["nodes"],
        ranks_per_node=(flags["ranks_per_node"],),
        tokens=flags["tokens"],
        num_sms=(flags["num_sms"],),
        knob=flags["knob"],
    )
    targets = targets_of_all if flags["wants_all"] else targets_of
    chosen = [
        target for target in targets(grid, flags["impl"]) if flags["op"] in (target.op, "pair")
    ]
    return Asked(chosen, tuple(flags["arch"]), fabric, keep_going=flags["wants_all"])


def _say_texts(asked: Asked, form: Literal["ptx", "sass"], say: Callable[[str], None]) -> None:
    """Print the PTX or the machine code of every launch."""
    from bench.asm.examine import texts

    for title, text in texts(asked, form):
        say(f"// {title}\n{text.rstrip()}\n\n")


def _given(context: click.Context) -> list[str]:
    """Return the flags that say what is compiled, as they were given."""
    given: list[str] = []
    for option in OPTIONS:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if name not in _COMPILING or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        given.append(option.opts[0])
        if name != "wants_all":
            given.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return given


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
