"""What a command line asks for: its flags as grids of axes and as a timing."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from bench.grid import Grid, default_grid
from bench.options import GRID_OPTIONS
from bench.suites import suite
from bench.timing import Timing
from comms.errors import UsageError
from comms.fabric import ONE_CARD


def resolve(context: click.Context, launched_ranks: int | None) -> list[Grid]:
    """Return the grids that a command line asks for.

    A flag that is given replaces its axis in every grid of the suite, or of the device's default;
    `--device` leaves those grids of a suite that are for it.

    Args:
        context: the parsed command.
        launched_ranks: ranks that a launcher started, the world where no flag tells another.

    Raises:
        UsageError: flags that contradict each other.
    """
    flags = context.params
    given = {
        option.name: flags[option.name]
        for option in GRID_OPTIONS
        if option.name
        and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    }
    grids: tuple[Grid, ...] = (default_grid(flags["device"]),)
    if flags.get("suite"):
        grids = suite(flags["suite"]).grids
        if "device" in given:
            grids = tuple(grid for grid in grids if grid.device == given["device"])
        if not grids:
            raise UsageError(f"suite {flags['suite']} has nothing for device {flags['device']}")
    if shared := flags.get("ranks_per_card"):
        given |= _on_one_card(shared, flags, given, grids)
    elif flags["ranks"] is not None:
        if "ranks_per_node" in given:
            raise UsageError("--ranks and --ranks-per-node cannot be given together; give one")
        given["ranks_per_node"] = _per_node(flags["ranks"], given.get("nodes", (1,)))
    elif (
        launched_ranks
        and not flags.get("suite")
        and "ranks_per_node" not in given
        and given.get("fabric") != (ONE_CARD,)
    ):
        given["ranks_per_node"] = _per_node((launched_ranks,), given.get("nodes", (1,)))
    return [msgspec.structs.replace(grid, **given) for grid in grids]


def timing_of(context: click.Context) -> Timing:
    """Return how often the command line wants clocks to be read."""
    flags = context.params
    profile = flags.get("profile", False)
    return Timing(
        num_iters=0 if profile else flags["iters"],
        num_warmup=0 if profile else flags["warmup"],
        check=flags["check"],
        timeout_s=flags["timeout"],
        memory=flags.get("memory", Timing().memory),
        graph=flags.get("graph", False),
        profile=profile,
    )


def _on_one_card(
    world_sizes: tuple[int, ...],
    flags: Mapping[str, Any],
    given: Mapping[str, Any],
    grids: Sequence[Grid],
) -> dict[str, Any]:
    """Return the axes of worlds of these sizes whose ranks share one GPU."""
    for name, flag in (("ranks_per_node", "ranks-per-node"), ("fabric", "fabric")):
        if name in given:
            raise UsageError(f"--ranks-per-card and --{flag} cannot be given together; give one")
    if flags["ranks"] not in (None, world_sizes):
        raise UsageError(
            "--ranks-per-card is the number of all ranks, which share one GPU: leave out --ranks, "
            "or start a rank a GPU"
        )
    if any(grid.device != "cuda" for grid in grids):
        raise UsageError("--ranks-per-card is for device cuda: ask for --device cuda")
    return {
        "fabric": (ONE_CARD,),
        "ranks_per_node": _per_node(world_sizes, given.get("nodes", (1,))),
    }


def _per_node(world_sizes: tuple[int, ...], nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ranks of a node for worlds of these sizes."""
    if len(nodes) > 1:
        raise UsageError(
            f"--ranks takes one number of --nodes, got {','.join(map(str, nodes))}; "
            "give --ranks-per-node"
        )
    for size in world_sizes:
        if size % nodes[0]:
            raise UsageError(f"ranks must be a multiple of --nodes {nodes[0]}, got {size}")
    return tuple(size // nodes[0] for size in world_sizes)
