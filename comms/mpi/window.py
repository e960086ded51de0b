"""Symmetric windows over MPI: one shared segment per rank, mapped by every process of the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.errors import RuntimeFailure
from comms.memory import PAGE_BYTES, Layout

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

#: Where Linux keeps shared memory, and what MPI libraries use for it.
SHARED_MEMORY = Path("/dev/shm")
#: Part of the free memory that is left alone.
_MARGIN = 0.05
#: Regions of flags are far smaller; larger ones are buffers, written before they are read.
_MOST_FLAG_BYTES = 4 * 1024 * 1024


def free_bytes(folder: Path = SHARED_MEMORY) -> int:
    """Return the bytes of shared memory that can be had: the file system's and the machine's.

    Raises:
        RuntimeFailure: there is no shared memory.
    """
    try:
        status = os.statvfs(folder)
    except OSError as error:
        raise RuntimeFailure(
            f"no shared memory at {folder} ({error.strerror}): mount it"
        ) from error
    return min(status.f_bavail * status.f_frsize, _available_bytes())


def require(num_bytes: int, ranks: Ranks) -> None:
    """Refuse on every rank what does not fit in some host's shared memory; collective.

    Touching a page that has no memory behind it would kill the process.

    Args:
        num_bytes: bytes of each rank.
        ranks: the world.

    Raises:
        RuntimeFailure: a host has less.
    """
    needed = num_bytes * ranks.local_size
    least = min(ranks.comm.allgather((free_bytes() * (1 - _MARGIN) - needed, free_bytes(), needed)))
    if least[0] < 0:
        _, free, wanted = least
        raise RuntimeFailure(
            f"{wanted / 1e6:.0f} MB of shared memory are needed, {SHARED_MEMORY} has "
            f"{free / 1e6:.0f} MB free: use fewer tokens or ranks, or enlarge it (docker run "
            "--shm-size)"
        )


class SharedWindows:
    """The windows of a world whose ranks are processes of one host."""

    def __init__(self, layout: Layout, ranks: Ranks) -> None:
        """Allocate the windows; collective.

        Raises:
            RuntimeFailure: there is not enough shared memory.
        """
        from mpi4py import MPI

        assert ranks.num_hosts == 1, f"{ranks.num_hosts=}"
        self.layout = layout
        # Segments may begin anywhere in a page, but at the same place in every process.
        num_bytes = layout.window_bytes + PAGE_BYTES
        require(num_bytes, ranks)
        try:
            self._window = MPI.Win.Allocate_shared(num_bytes, 1, comm=ranks.comm)
            failure = None
        except MPI.Exception as error:
            failure = str(error)
        # Ranks go on together or not at all.
        failures = [one for one in ranks.comm.allgather(failure) if one is not None]
        if failures:
            raise RuntimeFailure(
                f"{num_bytes / 1e6:.0f} MB of shared memory cannot be had from MPI: {failures[0]}"
            )
        self._bytes = [self._segment(rank) for rank in range(ranks.world_size)]
        # MPI promises no zeroes, which flags begin with; they are in small regions.
        for region in layout:
            if region.num_bytes <= _MOST_FLAG_BYTES:
                self.view(ranks.rank, region.name)[:] = 0

    def close(self) -> None:
        """Free the windows; collective."""
        self._bytes = []
        self._window.Free()

    def base(self, rank: int) -> int:
        """Return the address of a rank's window in this process."""
        return int(self._bytes[rank].ctypes.data)

    def word(self, rank: int, offset: int) -> int:
        """Return the int64 word at an offset of a rank's window."""
        return int(self._bytes[rank][offset : offset + 8].view(np.int64)[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""
        region = self.layout[name]
        own: npt.NDArray[Any] = self._bytes[rank][region.offset : region.offset + region.num_bytes]
        return own.view(dtype)

    def _segment(self, rank: int) -> npt.NDArray[np.uint8]:
        buffer, _ = self._window.Shared_query(rank)
        segment: npt.NDArray[np.uint8] = np.asarray(buffer, np.uint8)
        start = -segment.ctypes.data % PAGE_BYTES
        return segment[start : start + self.layout.window_bytes]


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kilobytes) * 1024
