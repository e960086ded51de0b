"""Symmetric windows on GPUs, each kind by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from comms.cuda.ipc import IpcWindows
from comms.cuda.memory import CardWindows
from comms.cuda.nccl_windows import NcclWindows
from comms.cuda.virtual import VirtualWindows
from comms.memory import Layout

if TYPE_CHECKING:
    from comms.cuda.kept_nccl import KeptNccl
    from comms.mpi.ranks import Ranks

__all__ = ["CardWindows", "IpcWindows", "Memory", "NcclWindows", "VirtualWindows", "open_windows"]

#: How ranks that are processes map each other's memory.
Memory = Literal["ipc", "nccl"]


def open_windows(
    memory: Memory,
    layout: Layout,
    ranks: Ranks,
    nccl: KeptNccl | None = None,
    *,
    zero: bool = False,
) -> CardWindows:
    """Return the windows of a world with a process a rank; collective.

    Args:
        memory: whose they are.
        layout: regions, the same on every rank.
        ranks: the world.
        nccl: whose communicators NCCL's windows are of, their own by default.
        zero: whether copy engines shall serve windows of NCCL.

    Raises:
        RuntimeFailure: they cannot be made; in the same words on all ranks.
    """
    if memory == "ipc":
        return IpcWindows(layout, ranks)
    return NcclWindows(layout, ranks, None if nccl is None else nccl.get(), zero=zero)
