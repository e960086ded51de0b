"""Stands in for what CuPy loads, launches and times: kernels run in real memory, as on `cpu`.

A launch takes its arguments apart as the C++ entry does, finds windows in the constant that the
host has written to the module, and runs the kernel's code for device `cpu` on the bytes of the fake
GPU, one machine of threads for each rank of the grid. Failed waits leave a report as
`cuh/waits.cuh` does.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_kernels import Constant, run_kernel, run_meet, run_stamp
from fake_nvml import install_nvml
from fake_ranks import this_process
from fake_streams import MOST_SHARED, NUM_SMS, FakeGpu, FakeStream, Running, install_streams, put

from comms.cuda.cubins import Cubin
from comms.cuda.machine import MAX_RANKS, Machine
from kernels.protocol import KernelLaunch

#: Threads that an SM holds, and a block.
_THREADS_OF_SM, _THREADS_OF_BLOCK = 2048, 1024


class CUDADriverError(RuntimeError):
    """CuPy's error of the driver."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"CUDA_ERROR_{status}: it failed")


CUDADriverError.__module__ = "cupy_backends.cuda.api.driver"


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
        if num_bytes > MOST_SHARED:
            raise CUDADriverError(1)
        self._most_shared = num_bytes

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
        stream: FakeStream | None = None,
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
        put(stream.ptr, Running(lambda: self._run(grid, values)))

    def _run(self, grid: tuple[int, ...], args: tuple[int, ...]) -> None:
        self._gpu.note(self._name)
        constant = Constant.of(self._words)
        if self._name == "epbench_meet":
            run_meet(constant, grid[1], *args)
        elif self._name == "epbench_stamp":
            run_stamp(grid[1], *args)
        else:
            assert self._launch is not None
            lost = {rank for name, rank in self._gpu.lost if name == self._name}
            run_kernel(
                self._launch, self._num_warps, constant, grid, args, self._window_bytes, lost
            )
        if status := self._gpu.killing.get((self._name, this_process().rank), 0):
            this_process().state["sticky"] = status

    def _window_bytes(self, base: int) -> int:
        return self._gpu.machine.blocks[this_process().rank, base].num_bytes


def entry_of(path: str, launch: KernelLaunch | None) -> str:
    """Return the symbol of a kernel."""
    if launch is None:
        return f"epbench{Path(path).stem}"
    return f"epbench_{launch.kernel.__name__}"


def occupancy(gpu: FakeGpu, name: str, num_threads: int, shared_bytes: int) -> int:
    """Return how many blocks an SM holds."""
    if shared_bytes > MOST_SHARED or num_threads > _THREADS_OF_BLOCK:
        return 0
    return gpu.occupancy.get(name, _THREADS_OF_SM // num_threads)


def install_launches(patch: pytest.MonkeyPatch, machine: FakeMachine, folder: Path) -> FakeGpu:
    """Let kernels be compiled, loaded and launched by fakes, until the patch is undone."""
    from kernels.isa import cuda_kernel, cuda_meet

    gpu = FakeGpu(machine)
    runtime = install_cuda(patch, machine)
    install_streams(patch, gpu, runtime)
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
    cuda.__dict__.update(driver=driver, nvtx=nvtx)
    patch.setitem(sys.modules, "cupy.cuda.driver", driver)
    patch.setitem(sys.modules, "cupy.cuda.nvtx", nvtx)
    install_nvml(patch, gpu.clocks)

    def write(
        path: Path, name: str, launch: KernelLaunch | None, num_warps: int, shared_bytes: int
    ) -> Cubin:
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
        path = folder / f"{launch.kernel.__module__}-{launch.name}-{num_warps}-{kind}.cubin"
        shared = gpu.shared_bytes.get(launch.name, 0)
        return write(path, launch.name, launch, num_warps, shared)

    def compile_meeting(arch: str, *, is_virtual: bool) -> dict[str, Cubin]:
        names = ("_meet", "_stamp")
        return {name: write(folder / f"{name}.cubin", name, None, 1, 0) for name in names}

    patch.setattr(cuda_kernel, "compile_kernel", compile_kernel)
    patch.setattr(cuda_meet, "compile_meeting", compile_meeting)
    return gpu
