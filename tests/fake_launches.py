"""Stands in for what CuPy loads, launches and times: kernels run in real memory, as on `cpu`.

A stream is a list of work that is done, in order, when the host looks at the stream. A launch takes
its arguments apart as the C++ entry does, finds windows in the constant that the host has written to
the module, and runs the kernel's code for device `cpu` on the bytes of the fake GPU, one machine of
threads for each rank of the grid. Failed waits leave a report as `cuh/waits.cuh` does.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import CUDARuntimeError, FakeRuntime, install_cuda
from fake_gpus import FakeMachine
from fake_kernels import Constant, run_kernel, run_meet, run_stamp
from fake_ranks import this_process

from comms.cuda.cubins import Cubin
from comms.cuda.machine import MAX_RANKS, Machine
from kernels.protocol import KernelLaunch

Work = Callable[[], bool]
#: Threads that an SM holds, and the shared memory of a block.
_THREADS_OF_SM, _MOST_SHARED = 2048, 232448
_THREADS_OF_BLOCK = 1024
NUM_SMS = 4


class CUDADriverError(RuntimeError):
    """CuPy's error of the driver."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"CUDA_ERROR_{status}: it failed")


CUDADriverError.__module__ = "cupy_backends.cuda.api.driver"


@dataclass
class FakeGpu:
    """What runs on the fake GPUs, and what goes wrong.

    Attributes:
        machine: their memory.
        compiled: launch and warps by the path of the machine code.
        launches: (rank, entry, grid, arguments) in the order in which they were queued.
        events: what streams did, in order, by rank: `memset`, `copy`, kernels by name, `event`.
        occupancy: blocks of an SM by symbol, where it is not what threads allow.
        failing: status by (entry, rank): what its launch raises.
        killing: status by (entry, rank): what streams tell when it has run.
        captures: whether streams can be captured.
        clocks: (rank, what NVML tells) for each look, the last for all later ones.
        ranges: names of ranges for profilers, by rank.
    """

    machine: FakeMachine
    compiled: dict[str, tuple[KernelLaunch | None, int]] = field(default_factory=dict)
    launches: list[tuple[int, str, tuple[int, int], tuple[int, ...]]] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    occupancy: dict[str, int] = field(default_factory=dict)
    failing: dict[tuple[str, int], int] = field(default_factory=dict)
    killing: dict[tuple[str, int], int] = field(default_factory=dict)
    captures: bool = True
    clocks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    ranges: list[tuple[int, str]] = field(default_factory=list)
    compiles: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Note what a stream does now."""
        self.events.append((this_process().rank, what))


def _pending(stream: int) -> list[Work]:
    streams: dict[int, list[Work]] = this_process().state.setdefault("streams", {})
    return streams.setdefault(stream, [])


def _capture(stream: int) -> list[Work] | None:
    captures: dict[int, list[Work]] = this_process().state.setdefault("captures", {})
    return captures.get(stream)


def _put(stream: int, work: Work) -> None:
    captured = _capture(stream)
    (_pending(stream) if captured is None else captured).append(work)


def _advance(stream: int) -> bool:
    """Do what can be done; return whether all is."""
    pending = _pending(stream)
    while pending and pending[0]():
        pending.pop(0)
    return not pending


class _Runtime:
    """The runtime's calls in the order of their streams."""

    def __init__(self, gpu: FakeGpu, runtime: FakeRuntime) -> None:
        self._gpu = gpu
        self._plain = {name: getattr(runtime, name) for name in ("memcpyAsync", "memsetAsync")}
        self._properties = runtime.getDeviceProperties
        for name in ("memcpyAsync", "memsetAsync", "streamQuery", "streamSynchronize"):
            setattr(runtime, name, getattr(self, name))
        runtime.getDeviceProperties = self.getDeviceProperties  # type: ignore[method-assign]
        runtime.memcpyDeviceToDevice = 3  # type: ignore[attr-defined]

    def getDeviceProperties(self, device: int) -> dict[str, Any]:
        sizes = {"multiProcessorCount": NUM_SMS, "l2CacheSize": 1 << 16}
        return {**self._properties(device), **sizes, "sharedMemPerBlockOptin": _MOST_SHARED}

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self._later("copy", "memcpyAsync", stream, (dst, src, size, kind, stream))

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        self._later("memset", "memsetAsync", stream, (ptr, value, size, stream))

    def streamQuery(self, stream: int) -> int:
        if _capture(stream) is not None:
            raise CUDARuntimeError(900)
        if status := this_process().state.get("sticky", 0):
            return int(status)
        done = _advance(stream)
        return int(this_process().state.get("sticky", 0)) or (0 if done else 600)

    def streamSynchronize(self, stream: int) -> None:
        while (status := self.streamQuery(stream)) == 600:
            time.sleep(0.0001)
        if status:
            raise CUDARuntimeError(status)

    def _later(self, what: str, name: str, stream: int, arguments: tuple[int, ...]) -> None:
        if status := this_process().state.get("sticky", 0):
            raise CUDARuntimeError(status)

        def work() -> bool:
            self._gpu.note(what)
            self._plain[name](*arguments)
            return True

        if not _pending(stream) and _capture(stream) is None:
            # Nothing is before it: other threads' kernels see it at once.
            work()
        else:
            _put(stream, work)


class _Stream:
    """`cupy.cuda.Stream`."""

    gpu: FakeGpu

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        assert non_blocking, "kernels wait for the default stream"
        self.ptr = sys.modules["cupy.cuda.runtime"].streamCreateWithFlags(1)

    def begin_capture(self, mode: int | None = None) -> None:
        if not self.gpu.captures:
            raise CUDARuntimeError(900)
        this_process().state.setdefault("captures", {})[self.ptr] = []

    def end_capture(self) -> "_Graph":
        works = this_process().state["captures"].pop(self.ptr)
        return _Graph(works)


class _Graph:
    """`cupy.cuda.Graph`."""

    def __init__(self, works: list[Work]) -> None:
        self._works = works

    def launch(self, stream: _Stream | None = None) -> None:
        assert stream is not None
        _pending(stream.ptr).extend(self._works)


class _Event:
    """`cupy.cuda.Event`."""

    gpu: FakeGpu

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.ptr = id(self)
        self.time_ns: int | None = None
        this_process().state.setdefault("events", {})[self.ptr] = self

    def record(self, stream: _Stream | None = None) -> None:
        assert stream is not None
        if _capture(stream.ptr) is None:
            _put(stream.ptr, self.stamp)

    def stamp(self) -> bool:
        """Note the time."""
        self.gpu.note("event")
        self.time_ns = time.perf_counter_ns()
        return True


def _elapsed(start_event: _Event, end_event: _Event) -> float:
    if start_event.time_ns is None or end_event.time_ns is None:
        raise CUDARuntimeError(400)
    return (end_event.time_ns - start_event.time_ns) / 1e6


class _Module:
    """`cupy.RawModule`; those of one path are one module of a process."""

    gpu: FakeGpu

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        assert path is not None
        assert enable_cooperative_groups, "kernels wait between blocks"
        if not Path(path).exists():
            raise CUDADriverError(301)
        self._path = path
        words: dict[str, Any] = this_process().state.setdefault("constants", {})
        size = MAX_RANKS + len(Machine._fields)
        self._words = words.setdefault(path, np.zeros(size, np.int64))

    def get_function(self, name: str) -> "_Kernel":
        launch, num_warps = self.gpu.compiled[self._path]
        if name != entry_of(self._path, launch):
            raise CUDADriverError(500)
        return _Kernel(self.gpu, name, launch, num_warps, self._words)

    def get_global(self, name: str) -> Any:  # noqa: ANN401
        if name != "ep_machine":
            raise CUDADriverError(500)
        return SimpleNamespace(ptr=self._words.ctypes.data)


class _Kernel:
    """`cupy.RawKernel`."""

    def __init__(
        self,
        gpu: FakeGpu,
        name: str,
        launch: KernelLaunch | None,
        num_warps: int,
        words: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        self._gpu, self._name, self._launch = gpu, name, launch
        self._num_warps, self._words = num_warps, words
        self._most_shared = 48 * 1024
        self.kernel = SimpleNamespace(ptr=id(self))
        this_process().state.setdefault("functions", {})[id(self)] = name

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Return the most shared memory of a launch."""
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, num_bytes: int) -> None:
        if num_bytes > _MOST_SHARED:
            raise CUDADriverError(1)
        self._most_shared = num_bytes

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
        stream: _Stream | None = None,
    ) -> None:
        rank = this_process().rank
        assert stream is not None
        assert all(type(value) is np.int64 for value in args), "an entry takes int64"
        if block != (32 * self._num_warps,) or shared_mem > self._most_shared:
            raise CUDADriverError(1)
        resident = NUM_SMS * occupancy(self._gpu, self._name, block[0], shared_mem)
        if grid[0] * grid[1] > resident:
            raise ValueError(f"The specified grid size ({grid}) exceeds the limit ({resident}).")
        if status := self._gpu.failing.get((self._name, rank), 0):
            raise CUDADriverError(status)
        values = tuple(int(value) for value in args)
        self._gpu.launches.append((rank, self._name, (grid[0], grid[1]), values))
        _put(stream.ptr, lambda: self._run(grid, values))

    def _run(self, grid: tuple[int, ...], args: tuple[int, ...]) -> bool:
        self._gpu.note(self._name)
        constant = Constant.of(self._words)
        if self._name == "epbench_meet":
            run_meet(constant, grid[1], *args)
        elif self._name == "epbench_stamp":
            run_stamp(grid[1], *args)
        else:
            assert self._launch is not None
            run_kernel(self._launch, self._num_warps, constant, grid, args, self._window_bytes)
        if status := self._gpu.killing.get((self._name, this_process().rank), 0):
            this_process().state["sticky"] = status
        return True

    def _window_bytes(self, base: int) -> int:
        return self._gpu.machine.blocks[this_process().rank, base].num_bytes


def entry_of(path: str, launch: KernelLaunch | None) -> str:
    """Return the symbol of a kernel."""
    if launch is None:
        return f"epbench{Path(path).stem}"
    return f"epbench_{launch.kernel.__name__}"


def occupancy(gpu: FakeGpu, name: str, num_threads: int, shared_bytes: int) -> int:
    """Return how many blocks an SM holds."""
    if shared_bytes > _MOST_SHARED or num_threads > _THREADS_OF_BLOCK:
        return 0
    return gpu.occupancy.get(name, _THREADS_OF_SM // num_threads)


def install_launches(patch: pytest.MonkeyPatch, machine: FakeMachine, folder: Path) -> FakeGpu:
    """Let kernels be compiled, loaded and launched by fakes, until the patch is undone."""
    from kernels.isa import cuda_kernel, cuda_meet

    gpu = FakeGpu(machine)
    runtime = install_cuda(patch, machine)
    _Runtime(gpu, runtime)
    cupy, cuda = sys.modules["cupy"], sys.modules["cupy.cuda"]
    driver = ModuleType("cupy.cuda.driver")

    def most_blocks(func: int, blockSize: int, dynamicSMemSize: int) -> int:  # noqa: N803
        name = this_process().state["functions"][func]
        return occupancy(gpu, name, blockSize, dynamicSMemSize)

    driver.__dict__.update(
        CUDADriverError=CUDADriverError, occupancyMaxActiveBlocksPerMultiprocessor=most_blocks
    )
    nvtx = ModuleType("cupy.cuda.nvtx")
    nvtx.__dict__.update(
        RangePush=lambda message, id_color=-1: gpu.ranges.append((this_process().rank, message)),
        RangePop=lambda: gpu.ranges.append((this_process().rank, "")),
    )
    cupy.__dict__.update(RawModule=type("RawModule", (_Module,), {"gpu": gpu}))
    cuda.__dict__.update(
        Stream=type("Stream", (_Stream,), {"gpu": gpu}),
        Event=type("Event", (_Event,), {"gpu": gpu}),
        get_elapsed_time=_elapsed,
        driver=driver,
        nvtx=nvtx,
    )
    patch.setitem(sys.modules, "cupy.cuda.driver", driver)
    patch.setitem(sys.modules, "cupy.cuda.nvtx", nvtx)
    _install_bindings(patch)
    _install_nvml(patch, gpu)

    def write(name: str, launch: KernelLaunch | None, num_warps: int, shared_bytes: int) -> Cubin:
        path = folder / f"{name}.cubin"
        path.write_bytes(b"code")
        gpu.compiled[str(path)] = launch, num_warps
        entry = entry_of(str(path), launch)
        return Cubin(name, "sm_90", b"code", entry, 32 * num_warps, shared_bytes, 0.0, path)

    def compile_kernel(
        launch: KernelLaunch,
        num_warps: int,
        *,
        arch: str = "sm_90",
        is_virtual: bool = False,
        line_info: bool = False,
    ) -> Cubin:
        options = {"arch": arch, "is_virtual": is_virtual, "line_info": line_info}
        gpu.compiles.append((this_process().rank, launch.name, options))
        kind = "virtual" if is_virtual else "own"
        return write(
            f"{launch.kernel.__module__}-{launch.name}-{num_warps}-{kind}", launch, num_warps, 0
        )

    def compile_meeting(arch: str, *, is_virtual: bool) -> dict[str, Cubin]:
        return {name: write(name, None, 1, 0) for name in ("_meet", "_stamp")}

    patch.setattr(cuda_kernel, "compile_kernel", compile_kernel)
    patch.setattr(cuda_meet, "compile_meeting", compile_meeting)
    return gpu


def _install_bindings(patch: pytest.MonkeyPatch) -> None:
    """Let `cuda.bindings.driver` record events in graphs."""
    driver = ModuleType("cuda.bindings.driver")

    def record(hEvent: int, hStream: int, flags: int) -> tuple[Any]:  # noqa: N803
        assert flags == 1
        event = this_process().state["events"][hEvent]
        _put(hStream, event.stamp)
        return (_Ok(),)

    flags = SimpleNamespace(CU_EVENT_RECORD_EXTERNAL=1)
    driver.__dict__.update(cuEventRecordWithFlags=record, CUevent_record_flags=flags)
    bindings = ModuleType("cuda.bindings")
    bindings.__dict__.update(driver=driver)
    patch.setitem(sys.modules, "cuda.bindings", bindings)
    patch.setitem(sys.modules, "cuda.bindings.driver", driver)


class _Ok:
    name = "CUDA_SUCCESS"

    def __int__(self) -> int:
        return 0


class NVMLError(Exception):
    """NVML's error."""


def _install_nvml(patch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    """Let `pynvml` tell `gpu.clocks`; a rank that has none may not look."""
    pynvml = ModuleType("pynvml")

    def handle(pci: str) -> int:
        if this_process().rank not in gpu.clocks:
            raise NVMLError("Insufficient Permissions")
        return this_process().rank

    def now(rank: int) -> tuple[int, int]:
        told = gpu.clocks[rank]
        return told[0]

    def reasons(rank: int) -> int:
        told = gpu.clocks[rank]
        return (told.pop(0) if len(told) > 1 else told[0])[1]

    pynvml.__dict__.update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=handle,
        nvmlDeviceGetClockInfo=lambda handle, type: now(handle)[0],
        nvmlDeviceGetCurrentClocksEventReasons=reasons,
    )
    patch.setitem(sys.modules, "pynvml", pynvml)
