"""Symmetric windows: named regions at equal offsets on every rank, reserved without touching."""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from comms.errors import RuntimeFailure

#: Regions start at multiples of this, so that the page of an offset tells its region.
PAGE_BYTES = 4096
#: Byte that outputs are filled with before a run: NaN in BF16, e4m3 and FP32, -1 in ids.
POISON = 0xFF


def reserve(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return zeroed memory whose pages cost nothing until they are touched.

    Raises:
        RuntimeFailure: the system does not give so much address space.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        return np.frombuffer(mmap.mmap(-1, max(num_bytes, 1), flags=flags), np.uint8)
    except OSError as error:
        raise RuntimeFailure(
            f"{num_bytes / 1e9:.1f} GB of address space cannot be reserved ({error.strerror}); "
            "use fewer tokens or ranks, or move a prefix of each row"
        ) from error


def huge(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return private memory that has been written once, in large pages where there are any."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(memory, np.uint8)
    buffer[:] = 1
    return buffer


@dataclass(frozen=True, slots=True)
class Region:
    """A named part of every rank's window."""

    name: str
    offset: int
    num_bytes: int


class Layout:
    """Where the regions of a window are; the same on every rank."""

    def __init__(self, regions: Mapping[str, int]) -> None:
        self.regions: dict[str, Region] = {}
        offset = 0
        for name, num_bytes in regions.items():
            self.regions[name] = Region(name, offset, num_bytes)
            # One unused page follows each region, so that an overrun never lands in the next.
            offset += (-(-num_bytes // PAGE_BYTES) + 1) * PAGE_BYTES
        self.window_bytes = offset

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions.values())

    def locate(self, offset: int) -> tuple[Region, int] | None:
        """Return the region an offset lies in and the distance from its start."""
        for region in self.regions.values():
            if region.offset <= offset < region.offset + region.num_bytes:
                return region, offset - region.offset
        return None

    def describe(self, offset: int) -> str:
        """Return a flag's name for a message, for example `hello[3]` for the fourth word."""
        found = self.locate(offset)
        if found is None:
            return f"offset {offset}"
        region, distance = found
        return f"{region.name}[{distance // 8}]"

    def describe_outside(self, offset: int) -> str:
        """Return where an offset outside of every region is, by the region that lies before it."""
        before = [region for region in self if region.offset <= offset]
        if not before:
            return f"offset {offset} of its window"
        region = before[-1]
        return f"byte {offset - region.offset} of region {region.name} of {region.num_bytes} bytes"


class AnyWindows(Protocol):
    """Windows of a world, as far as this process sees them."""

    @property
    def layout(self) -> Layout:
        """Regions of every window."""

    def base(self, rank: int) -> int:
        """Return the address of a rank's window in this process."""

    def word(self, rank: int, offset: int) -> int:
        """Return the int64 word at an offset of a rank's window."""

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""


class Windows:
    """The windows of a world whose ranks all live in this process."""

    def __init__(self, layout: Layout, world_size: int) -> None:
        self.layout = layout
        self._bytes = reserve(layout.window_bytes * world_size).reshape(world_size, -1)

    def base(self, rank: int) -> int:
        """Return the address of a rank's window."""
        return int(self._bytes[rank].ctypes.data)

    def word(self, rank: int, offset: int) -> int:
        """Return the int64 word at an offset of a rank's window."""
        return int(self._bytes[rank, offset : offset + 8].view(np.int64)[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""
        region = self.layout[name]
        return self._bytes[rank, region.offset : region.offset + region.num_bytes].view(dtype)
