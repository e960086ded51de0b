"""GPUs of host memory that several processes share.

An allocation is a file in memory; whoever opens its handle maps it again, at another address, as
CUDA does.
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from fake_ranks import this_process

_NAMES = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    201: "cudaErrorDeviceUninitialized: invalid device context",
    205: "cudaErrorMapBufferObjectFailed: mapping of buffer object failed",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    600: "cudaErrorNotReady: device not ready",
    704: "cudaErrorPeerAccessAlreadyEnabled: peer access is already enabled",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
}


class CUDARuntimeError(RuntimeError):
    """CuPy's error of the runtime."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_NAMES.get(status, "cudaErrorUnknown: unknown error"))


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


@dataclass
class FakeCard:
    """A GPU."""

    number: int
    total: int = 1 << 30
    used: int = 0

    @property
    def uuid(self) -> str:
        """Its UUID, with a zero byte in it."""
        return f"{self.number:08x}-0000-0000-0000-000000000001"


@dataclass
class Block:
    """An allocation, or a mapping of another's."""

    address: int
    num_bytes: int
    memory: mmap.mmap | None
    fd: int
    card: FakeCard
    is_owner: bool = True


@dataclass
class FakeMachine:
    """The GPUs of a host and what goes wrong with them.

    Attributes:
        cards: all GPUs.
        visible: those that each rank sees, None for all.
        blocked: pairs of GPUs that do not reach each other.
        driver: version of the driver, 0 for none.
        faults: status by (call, rank): what this call raises there.
        busy: streams whose work does not end, by (rank, stream); all of a rank's with -1.
        calls: names of calls, with the rank, in order.
        swapped: whether handles show other memory than theirs.
    """

    cards: list[FakeCard] = field(default_factory=lambda: [FakeCard(n) for n in range(8)])
    visible: dict[int, list[int]] = field(default_factory=dict)
    blocked: set[tuple[int, int]] = field(default_factory=set)
    driver: int = 13020
    faults: dict[tuple[str, int], int] = field(default_factory=dict)
    pending: list[Callable[[], bool]] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    blocks: dict[tuple[int, int], Block] = field(default_factory=dict)
    swapped: bool = False

    def seen(self) -> list[FakeCard]:
        """Return the GPUs of this process."""
        visible = self.visible.get(this_process().rank)
        return self.cards if visible is None else [self.cards[number] for number in visible]

    def begin(self, name: str) -> None:
        """Note a call, and let it fail where it shall."""
        rank = this_process().rank
        self.calls.append((name, rank))
        if not self.driver or self.driver // 1000 < 13:
            raise CUDARuntimeError(35)
        if (name, rank) in self.faults:
            raise CUDARuntimeError(self.faults[name, rank])
        if status := this_process().state.get("sticky", 0):
            # A kernel has failed: from now on every call says so.
            raise CUDARuntimeError(status)

    def left(self) -> list[Block]:
        """Return allocations that nobody has freed."""
        return list(self.blocks.values())

    def map(self, num_bytes: int, fd: int, card: FakeCard, *, is_owner: bool) -> int:
        """Map a file in memory, and return where."""
        memory = mmap.mmap(fd, num_bytes)
        address = ctypes.addressof(ctypes.c_uint8.from_buffer(memory))
        block = Block(address, num_bytes, memory, fd, card, is_owner)
        self.blocks[this_process().rank, address] = block
        return address

    def allocate(self, num_bytes: int, card: FakeCard) -> int:
        """Return new memory of a GPU."""
        if card.used + num_bytes > card.total:
            raise CUDARuntimeError(2)
        card.used += num_bytes
        fd = os.memfd_create("gpu")
        os.ftruncate(fd, num_bytes)
        address = self.map(num_bytes, fd, card, is_owner=True)
        # What was there before is what a kernel would see.
        ctypes.memset(address, 0xAB, num_bytes)
        return address

    def release(self, address: int, *, is_owner: bool) -> None:
        """Free or unmap."""
        block = self.blocks.get((this_process().rank, address))
        if block is None or block.is_owner != is_owner:
            raise CUDARuntimeError(1)
        del self.blocks[this_process().rank, address]
        if is_owner:
            block.card.used -= block.num_bytes
            os.close(block.fd)
