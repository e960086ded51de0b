"""Stands in for CuPy's runtime and the driver, with the errors that they raise."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpus import CUDARuntimeError, FakeCard, FakeMachine
from fake_ranks import ProcessThread, this_process, this_thread


class DynamicLibNotFoundError(RuntimeError):
    """cuda-pathfinder's error where a library is missing."""


DynamicLibNotFoundError.__module__ = "cuda.pathfinder._dynamic_libs.load_dl_common"


class UnownedMemory:
    """Memory that CuPy does not own."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: UnownedMemory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset


class FakeArray(np.ndarray[Any, Any]):
    """An array of a GPU, which here is one of the host."""

    memptr: MemoryPointer

    @property
    def data(self) -> Any:  # noqa: ANN401
        """Return where it begins, also if it is a part of another."""
        return SimpleNamespace(ptr=self.ctypes.data)


def ndarray(shape: tuple[int, ...], dtype: Any, memptr: MemoryPointer) -> FakeArray:  # noqa: ANN401
    """Return an array over memory."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert num_bytes <= memptr.mem.size
    buffer = (ctypes.c_uint8 * num_bytes).from_address(memptr.ptr)
    array = np.frombuffer(buffer, dtype).reshape(shape).view(FakeArray)
    array.memptr = memptr
    return array


def _in_order(stream: int, work: Callable[[], object]) -> None:
    """Do work when all before it on a stream has ended, at once where there is none."""
    pending = this_process().state.setdefault("pending", {})
    if not pending.get(stream):
        work()
        return

    def look() -> bool:
        if pending[stream][0] is not look:
            return False
        work()
        return True

    pending[stream].append(look)


class FakeRuntime(ModuleType):
    """`cupy.cuda.runtime`."""

    CUDARuntimeError = CUDARuntimeError
    streamNonBlocking, hostAllocPortable = 1, 1
    memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 1, 2, 3
    eventDisableTiming = 2

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__("cupy.cuda.runtime")
        self._machine = machine
        self._streams = 0
        self._events = 0

    def _card(self) -> FakeCard:
        seen = self._machine.seen()
        if not seen:
            raise CUDARuntimeError(100)
        return seen[self.getDevice()]

    def driverGetVersion(self) -> int:
        return self._machine.driver

    def runtimeGetVersion(self) -> int:
        return 13020

    def getDeviceCount(self) -> int:
        self._machine.begin("getDeviceCount")
        if not self._machine.seen():
            raise CUDARuntimeError(100)
        return len(self._machine.seen())

    def getDevice(self) -> int:
        return int(this_thread().get("device", 0))

    def setDevice(self, device: int) -> None:
        self._machine.begin("setDevice")
        if not 0 <= device < len(self._machine.seen()):
            raise CUDARuntimeError(101)
        this_thread()["device"] = device

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        card = self._machine.seen()[device]
        return {
            "name": b"NVIDIA H800",
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 132,
            "totalGlobalMem": card.total,
        }

    def deviceGetPCIBusId(self, device: int) -> str:
        return f"0000:{0x1B + self._machine.seen()[device].number:02X}:00.0"

    def memGetInfo(self) -> tuple[int, int]:
        self._machine.begin("memGetInfo")
        card = self._card()
        return card.total - card.used, card.total

    def malloc(self, size: int) -> int:
        self._machine.begin("malloc")
        return self._machine.allocate(size, self._card())

    def free(self, ptr: int) -> None:
        self._machine.begin("free")
        if ptr:
            self._machine.release(ptr, is_owner=True)

    def hostAlloc(self, size: int, flags: int) -> int:
        self._machine.begin("hostAlloc")
        return self._machine.allocate(size, FakeCard(-1))

    def freeHost(self, ptr: int) -> None:
        self._machine.begin("freeHost")
        self._machine.release(ptr, is_owner=True)

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self._machine.begin("memcpyAsync")
        _in_order(stream, lambda: ctypes.memmove(dst, src, size))

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        self._machine.begin("memsetAsync")
        _in_order(stream, lambda: ctypes.memset(ptr, value, size))

    def streamCreateWithFlags(self, flags: int) -> int:
        self._machine.begin("streamCreateWithFlags")
        self._streams += 1
        return 1000 + self._streams

    def streamDestroy(self, stream: int) -> None:
        self._machine.begin("streamDestroy")

    def streamSynchronize(self, stream: int) -> None:
        self._machine.begin("streamSynchronize")

    def streamQuery(self, stream: int) -> int:
        status = self._machine.faults.get(("streamQuery", this_process().rank), 0)
        if status:
            return status
        pending = this_process().state.setdefault("pending", {})
        pending[stream] = [work for work in pending.get(stream, []) if not work()]
        return 600 if pending[stream] else 0

    def eventCreateWithFlags(self, flags: int) -> int:
        self._machine.begin("eventCreateWithFlags")
        self._events += 1
        return 2000 + self._events

    def eventRecord(self, event: int, stream: int) -> None:
        self._machine.begin("eventRecord")
        ended = this_process().state.setdefault("ended", set())
        ended.discard(event)
        _in_order(stream, lambda: ended.add(event))

    def eventQuery(self, event: int) -> int:
        self._machine.begin("eventQuery")
        for stream in list(this_process().state.get("pending", {})):
            self.streamQuery(stream)
        return 0 if event in this_process().state["ended"] else 600

    def eventDestroy(self, event: int) -> None:
        self._machine.begin("eventDestroy")

    def deviceCanAccessPeer(self, device: int, peerDevice: int) -> int:  # noqa: N803
        self._machine.begin("deviceCanAccessPeer")
        seen = self._machine.seen()
        pair = (seen[device].number, seen[peerDevice].number)
        return int(pair not in self._machine.blocked and pair[::-1] not in self._machine.blocked)

    def deviceEnablePeerAccess(self, peerDevice: int) -> None:  # noqa: N803
        self._machine.begin("deviceEnablePeerAccess")
        enabled = this_process().state.setdefault("peers", set())
        if peerDevice in enabled:
            raise CUDARuntimeError(704)
        enabled.add(peerDevice)

    def ipcGetMemHandle(self, devPtr: int) -> bytes:  # noqa: N803
        self._machine.begin("ipcGetMemHandle")
        block = self._machine.blocks[this_process().rank, devPtr]
        fields = (os.getpid(), this_process().rank, block.fd, block.num_bytes, block.card.number)
        return struct.pack("5q", *fields).ljust(64, b"\0")

    def ipcOpenMemHandle(self, handle: bytes, flags: int = 1) -> int:
        self._machine.begin("ipcOpenMemHandle")
        pid, rank, fd, num_bytes, number = struct.unpack("5q", handle[:40])
        opened = this_process().state.setdefault("opened", {})
        if rank == this_process().rank:
            raise CUDARuntimeError(201)
        if handle in opened.values():
            raise CUDARuntimeError(400)
        if number not in [card.number for card in self._machine.seen()]:
            raise CUDARuntimeError(400)
        path = "/dev/zero" if self._machine.swapped else f"/proc/{pid}/fd/{fd}"
        with open(path, "r+b") as file:
            card = self._machine.cards[number]
            address = self._machine.map(num_bytes, file.fileno(), card, is_owner=False)
        opened[address] = handle
        return address

    def ipcCloseMemHandle(self, devPtr: int) -> None:  # noqa: N803
        self._machine.begin("ipcCloseMemHandle")
        self._machine.release(devPtr, is_owner=False)
        del this_process().state["opened"][devPtr]


class _Device:
    """`cuda.core.Device`."""

    machine: FakeMachine

    def __init__(self, device_id: int) -> None:
        if not self.machine.driver:
            raise DynamicLibNotFoundError(
                '"cuda" is an NVIDIA driver library and can only be found via system search. '
                "Ensure the NVIDIA display driver is installed."
            )
        self.uuid = self.machine.seen()[device_id].uuid


def install_cuda(patch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeRuntime:
    """Let `cupy` and `cuda.core` be fakes, until the patch is undone."""
    from comms.cuda import limits

    runtime = FakeRuntime(machine)
    cupy, cupy_cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cuda, core = ModuleType("cuda"), ModuleType("cuda.core")
    cupy.__dict__.update(ndarray=ndarray, uint8=np.uint8, cuda=cupy_cuda)
    cupy_cuda.__dict__.update(
        runtime=runtime, MemoryPointer=MemoryPointer, UnownedMemory=UnownedMemory
    )
    core.__dict__.update(Device=type("Device", (_Device,), {"machine": machine}))
    cuda.__dict__.update(core=core)
    modules = {"cupy": cupy, "cupy.cuda": cupy_cuda, "cupy.cuda.runtime": runtime}
    for name, module in {**modules, "cuda": cuda, "cuda.core": core}.items():
        patch.setitem(sys.modules, name, module)
    patch.setattr(limits, "threading", SimpleNamespace(Thread=ProcessThread))
    return runtime


def remove(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages not be installed."""
    for name in names:
        for module in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            patch.delitem(sys.modules, module)
        patch.setitem(sys.modules, name, None)
