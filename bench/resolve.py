"""What a command line asks for: its flags as grids of axes and as a timing."""

import click
import msgspec

from bench.grid import Grid, default_grid
from bench.options import GRID_OPTIONS
from bench.suites import suite
from bench.timing import Timing
from comms.errors import UsageError


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
    if flags["ranks"] is not None:
        if "ranks_per_node" in given:
            raise UsageError("--ranks and --ranks-per-node cannot be given together; give one")
        given["ranks_per_node"] = _per_node(flags["ranks"], given.get("nodes", (1,)))
    elif launched_ranks and not flags.get("suite") and "ranks_per_node" not in given:
        given["ranks_per_node"] = _per_node((launched_ranks,), given.get("nodes", (1,)))
    return [msgspec.structs.replace(grid, **given) for grid in grids]


def timing_of(context: click.Context) -> Timing:
    """Return how often the command line wants clocks to be read."""
    flags = context.params
    return Timing(
        num_iters=flags["iters"],
        num_warmup=flags["warmup"],
        check=flags["check"],
        timeout_s=flags["timeout"],
    )


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
