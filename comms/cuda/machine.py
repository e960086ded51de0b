"""What kernels are told once, and what a wait that fails leaves: `kernels/isa/cuh/machine.cuh`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from comms.memory import Layout
from comms.waits import describe_flag, describe_place

#: The constant of each module, and the ranks that it has room for.
SYMBOL = "ep_machine"
MAX_RANKS = 1024
TIMED_OUT, ABORTED = 1, 2
#: Offset of a wait that is for other warps or for a copy.
NO_FLAG = -1


class Machine(NamedTuple):
    """The words after the bases, in their order.

    Attributes:
        first_rank: rank of the first one on this GPU.
        world_size: ranks.
        ranks_per_node: of them on a node.
        abort_offset: word of each window; not 0 ends its rank's kernels.
        limit_ns: longest that a wait may take.
        report: address of a report in this GPU's memory.
    """

    first_rank: int
    world_size: int
    ranks_per_node: int
    abort_offset: int
    limit_ns: int
    report: int


def machine_words(bases: Sequence[int], machine: Machine) -> npt.NDArray[np.int64]:
    """Return the constant: where windows are, and what else kernels are told.

    Args:
        bases: of each rank's window as this process addresses it.
        machine: the rest.
    """
    assert len(bases) == machine.world_size <= MAX_RANKS, f"{len(bases)=}"
    words = np.zeros(MAX_RANKS + len(machine), np.int64)
    words[: len(bases)] = bases
    words[MAX_RANKS:] = machine
    return words


class Report(NamedTuple):
    """The first wait that failed on a GPU.

    Attributes:
        cause: 0 for none, TIMED_OUT or ABORTED.
        rank: whose warp it was.
        sm: its block.
        warp: its number in the block.
        offset: of the flag in the rank's window, or NO_FLAG.
        seen: what the warp saw.
        wanted: what it waited for.
        line: place in the source, 0 for the meeting of ranks.
    """

    cause: int
    rank: int
    sm: int
    warp: int
    offset: int
    seen: int
    wanted: int
    line: int


REPORT_BYTES = 8 * len(Report._fields)


@dataclass(frozen=True, slots=True)
class Ended:
    """Why kernels have ended early, in words.

    Attributes:
        sentence: the cause.
        waits: where a warp was and what it waited for.
        is_timeout: whether its wait reached the limit.
    """

    sentence: str
    waits: list[tuple[str, str]]
    is_timeout: bool


def describe(report: Report, layout: Layout, meet: str, limit_s: float) -> Ended:
    """Return what a report says.

    Args:
        report: its cause is not 0.
        layout: regions of a window, for the names of flags.
        meet: region where ranks meet.
        limit_s: longest that a wait may take.
    """
    where = f"rank {report.rank} sm {report.sm} warp {report.warp}"
    is_timeout = report.cause == TIMED_OUT
    region = layout.locate(report.offset)
    if report.line == 0:
        # Ranks meet in a kernel of the harness, which has no line of a kernel's source.
        came = region is not None and region[0].name == meet
        what = f"the others: {report.seen} of {report.wanted} came" if came else "its host"
        sentence = f"a rank did not come to the start within {limit_s:g} s"
        waits = [(where, f"waits for {what}")]
    else:
        sentence = f"no end: a wait reached its limit of {limit_s:g} s"
        line = describe_place(report.line)
        if report.offset == NO_FLAG:
            what = f"{line} waits for other warps of its block, or for a copy"
        else:
            flag = layout.describe(report.offset)
            what = describe_flag(line, flag, report.wanted, report.seen)
        waits = [(where, what)]
    return Ended(sentence if is_timeout else "another rank's program failed", waits, is_timeout)
