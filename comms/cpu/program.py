"""What a machine runs: launches, made ready as a program, of a rank that has a place."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in its world."""

    rank: int
    world_size: int
    ranks_per_node: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on this rank; without an entry the ranks meet, so that they begin at once.

    Attributes:
        name: the phase it is recorded as.
        entry: address of the compiled entry, which takes the address of `params`; 0 to meet.
        num_blocks: blocks, one on each thread used.
        num_warps: warps of a block.
        params: int64 parameters.
        source: file of the kernel, for messages.
    """

    name: str
    entry: int
    num_blocks: int
    num_warps: int
    params: npt.NDArray[np.int64]
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Launches made ready to run, as often as wanted.

    Attributes:
        launches: the kernels, in order.
        max_warps: most warps of a block.
        table: a record of each launch.
        stamps: when each thread began and ended each launch.
        warps: records of the warps.
    """

    launches: tuple[Launch, ...]
    max_warps: int
    table: npt.NDArray[Any]
    stamps: npt.NDArray[Any]
    warps: npt.NDArray[Any]


#: Waits for every rank of the world.
MEET = Launch("meet", 0, 0, 1, np.zeros(1, np.int64), "")
