"""Streams, events and graphs of fake GPUs: work that is done in order, when the host looks."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
from fake_cuda import CUDARuntimeError, FakeRuntime
from fake_gpus import FakeMachine
from fake_ranks import ProcessThread, this_process

from kernels.protocol import KernelLaunch

Work = Callable[[], bool]
#: SMs of a GPU, and the most shared memory of a block.
NUM_SMS = 8
MOST_SHARED = 232448


@dataclass
class FakeGpu:
    """What runs on the fake GPUs, and what goes wrong.

    Attributes:
        machine: their memory.
        compiled: launch and warps by the path of the machine code.
        launches: (rank, entry, grid, arguments) in the order in which they were queued.
        events: what streams did, in order, by rank: `memset`, `copy`, kernels by name, `event`.
        occupancy: blocks of an SM by symbol, where it is not what threads allow.
        shared_bytes: dynamic shared memory by launch.
        failing: status by (entry, rank): what its launch raises.
        lost: (symbol, rank) of kernels that never do anything.
        killing: status by (entry, rank): what streams tell when it has run.
        captures: whether streams can be captured.
        clocks: (rank, what NVML tells) for each look, the last for all later ones.
        ranges: names of ranges for profilers, by rank, empty at their ends.
        compiles: (rank, launch, options) of what was compiled.
    """

    machine: FakeMachine
    compiled: dict[str, tuple[KernelLaunch | None, int]] = field(default_factory=dict)
    launches: list[tuple[int, str, tuple[int, int], tuple[int, ...]]] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    occupancy: dict[str, int] = field(default_factory=dict)
    shared_bytes: dict[str, int] = field(default_factory=dict)
    failing: dict[tuple[str, int], int] = field(default_factory=dict)
    lost: set[tuple[str, int]] = field(default_factory=set)
    killing: dict[tuple[str, int], int] = field(default_factory=dict)
    captures: bool = True
    clocks: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    ranges: list[tuple[int, str]] = field(default_factory=list)
    compiles: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Note what a stream does now."""
        self.events.append((this_process().rank, what))


class Running:
    """Work that goes on while the host looks at its stream again; may be done several times."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._thread: ProcessThread | None = None
        self._errors: list[Exception] = []

    def __call__(self) -> bool:
        """Begin, or tell whether it has ended."""
        if self._thread is None:
            self._thread = ProcessThread(target=self._run, daemon=True)
            self._thread.start()
        self._thread.join(0.001)
        if self._thread.is_alive():
            return False
        self._thread = None
        if self._errors:
            raise self._errors.pop()
        return True

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001
            self._errors.append(error)


def _pending(stream: int) -> list[Work]:
    streams: dict[int, list[Work]] = this_process().state.setdefault("streams", {})
    return streams.setdefault(stream, [])


def _capture(stream: int) -> list[Work] | None:
    captures: dict[int, list[Work]] = this_process().state.setdefault("captures", {})
    return captures.get(stream)


def put(stream: int, work: Work) -> None:
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
        return {**self._properties(device), **sizes, "sharedMemPerBlockOptin": MOST_SHARED}

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self._later("copy", "memcpyAsync", stream, (dst, src, size, kind, stream))

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        self._later("memset", "memsetAsync", stream, (ptr, value, size, stream))

    def streamQuery(self, stream: int) -> int:
        # CuPy returns what this call says, whatever that is.
        if _capture(stream) is not None:
            return 900
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
            put(stream, work)


class FakeStream:
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

    def launch(self, stream: FakeStream | None = None) -> None:
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
        events: Any = this_process().state.setdefault("events", WeakValueDictionary())
        events[self.ptr] = self

    def record(self, stream: FakeStream | None = None) -> None:
        assert stream is not None
        if _capture(stream.ptr) is None:
            put(stream.ptr, self.stamp)

    def stamp(self) -> bool:
        """Note the time."""
        self.gpu.note("event")
        self.time_ns = time.perf_counter_ns()
        return True


def _elapsed(start_event: _Event, end_event: _Event) -> float:
    if start_event.time_ns is None or end_event.time_ns is None:
        raise CUDARuntimeError(400)
    return (end_event.time_ns - start_event.time_ns) / 1e6


def install_streams(patch: pytest.MonkeyPatch, gpu: FakeGpu, runtime: FakeRuntime) -> None:
    """Let CuPy's streams and events be fakes, and `cuda.bindings` record events in graphs."""
    _Runtime(gpu, runtime)
    sys.modules["cupy.cuda"].__dict__.update(
        Stream=type("Stream", (FakeStream,), {"gpu": gpu}),
        Event=type("Event", (_Event,), {"gpu": gpu}),
        get_elapsed_time=_elapsed,
    )
    driver = ModuleType("cuda.bindings.driver")

    def record(hEvent: int, hStream: int, flags: int) -> tuple[Any]:  # noqa: N803
        assert flags == 1
        event = this_process().state["events"][hEvent]
        put(hStream, event.stamp)
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
