"""GPU kernels of C++ run by this machine's CPUs, as a world of ranks: what they compute, no times.

    windows = host_world.windows(num_ranks=2, window_bytes=65536)
    outcome = host_world.run(source, "my_kernel", num_blocks=2, num_warps=4,
                             params=[[...], [...]], windows=windows)
    assert outcome.is_clean, outcome

`source` is a translation unit as NVRTC gets it, with `#include "cuda.cuh"` or `"cuh/exports.cuh"`;
its `__global__` function takes int64 parameters only. It may use what `cuda.cuh` defines and no
other CUDA: `ep::lane_id()` for `threadIdx`, `ep::sync_warp()` for `__syncwarp`, and so on. Block-
shared variables are declared with `EP_SHARED` (in or outside of functions, 0xCB bytes at first),
dynamic shared memory with `EP_DYNAMIC_SHARED(type, name)` outside of functions. What a macro of
`entry_source` (kernels/isa/cuda_kernel.py) switches on needs it in `defines` or in the source:
EP_BULK, EP_GROUPS, EP_MANY_WARPS, EP_VIRTUAL (`own_rank()` is right with and without it).
EP_HOST_FP8 lets e4m3 be converted as GPUs that have an instruction for it do, EP_HOST_NO_BULK
leaves bulk copies out.

A kernel's entry calls `ep::begin_block()` first and `ep::end_block()` last. Windows are at equal
distance `windows.strides[0]`, which is what `stride` is for entries of several ranks on a card.
Addresses in `params` are those of `windows`' own memory (`address_of`); the program that runs the
kernel has them elsewhere and moves every parameter that lies in a window along. Addresses that lie
in memory are not moved: tables of them have to be offsets. All of a kernel's memory is in windows.

Lanes are fibers that take turns in an order that `seed` decides; blocks are threads. A shuffle or a
ballot orders no memory. Lanes of a warp that do not come to the same meeting, a deadlock within a
block, an unaligned access, more bytes on an mbarrier than it expects, a bulk copy that nobody has
waited for and the like are in `outcome.message`; a wait's time-out in `outcome.report`. With
`sanitizer="thread"` each lane is a thread to ThreadSanitizer, and what fences and bulk copies order
is told to it as the GPU's memory model has it; "address" is AddressSanitizer and UBSan, to which
the bytes between windows are forbidden. Their findings are in `outcome.found`.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import host_build
import numpy as np
import numpy.typing as npt
from host_build import Mutation, Sanitizer

Windows = npt.NDArray[np.uint8]
BulkTimes = Literal["at_waits", "at_any_time", "at_once"]

PAGE_BYTES = 4096
MESSAGE_BYTES = 512
#: Of kernels/isa/cuh/machine.cuh.
TIMED_OUT, ABORTED = 1, 2
#: Of `Report` in `cuh/machine.cuh`.
_REPORT_ALIGNMENT = 16
REPORT_FIELDS = ("cause", "rank", "sm", "warp", "offset", "seen", "wanted", "line")


class World(ctypes.Structure):
    """`World` of kernels/isa/host/runtime.h."""

    _fields_ = [
        (name, ctypes.c_longlong)
        for name in (
            *("num_ranks", "ranks_per_node", "num_blocks", "num_warps", "num_params", "params"),
            *("windows", "stride_bytes", "window_bytes", "abort_offset", "limit_ns"),
            *("seed", "bulk_times", "report", "message"),
        )
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch ended.

    Attributes:
        message: what it did that a GPU does not allow, or nothing.
        report: the first wait that failed, by field; empty when none has.
        found: what a sanitizer says, or why the program ended, or nothing.
    """

    message: str
    report: dict[str, int]
    found: str

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.message or self.report or self.found)


def windows(num_ranks: int, window_bytes: int, fill: int = 0) -> Windows:
    """Return windows, uint8 `(num_ranks, window_bytes)`, with a page between every two."""
    stride = -(-window_bytes // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES
    memory = np.full(num_ranks * stride + PAGE_BYTES, fill, np.uint8)
    skipped = -memory.ctypes.data % PAGE_BYTES
    rows = memory[skipped : skipped + num_ranks * stride].reshape(num_ranks, stride)
    return rows[:, :window_bytes]


def address_of(windows: Windows, rank: int, offset: int = 0) -> int:
    """Return the address of a byte of a rank's window."""
    return int(windows.ctypes.data) + rank * windows.strides[0] + offset


def run(
    source: str,
    kernel_name: str,
    *,
    num_blocks: int,
    num_warps: int,
    params: Sequence[Sequence[int]],
    windows: Windows,
    ranks_per_node: int | None = None,
    abort_offset: int = 0,
    limit_s: float = 20.0,
    seed: int = 1,
    bulk_times: BulkTimes = "at_any_time",
    defines: Sequence[str] = (),
    sanitizer: Sanitizer = "none",
    mutation: Mutation | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Run a kernel once on every rank; windows hold afterwards what it has written.

    Args:
        source: the translation unit.
        kernel_name: its `__global__` function.
        num_blocks: blocks of each rank.
        num_warps: warps of each block.
        params: int64 parameters of each rank, in order.
        windows: uint8 `(num_ranks, window_bytes)`, of `windows()`; read and written.
        ranks_per_node: ranks of a node, all by default.
        abort_offset: word of each window that ends its rank's waits; word 0 by default.
        limit_s: longest that a wait may take.
        seed: order of turns.
        bulk_times: when bulk copies happen: as late as they may, at random times, at once.
        defines: macros.
        sanitizer: what watches it.
        mutation: a mistake to make in a header.
        folder: where the source finds includes of its own.
    """
    library = host_build.library(
        source,
        kernel_name,
        defines=defines,
        sanitizer=sanitizer,
        mutation=mutation,
        folder=folder,
    )
    world = make_world(
        windows=windows,
        num_blocks=num_blocks,
        num_warps=num_warps,
        num_params=len(params[0]),
        ranks_per_node=ranks_per_node,
        abort_offset=abort_offset,
        limit_s=limit_s,
        seed=seed,
        bulk_times=bulk_times,
    )
    table = np.array(params, np.int64)
    assert len(table) == len(windows), "a list of parameters for each rank"
    return _run_in_file(library, world, table, windows, sanitizer)


def make_world(
    *,
    windows: Windows,
    num_blocks: int,
    num_warps: int,
    num_params: int,
    ranks_per_node: int | None,
    abort_offset: int,
    limit_s: float,
    seed: int,
    bulk_times: BulkTimes,
) -> World:
    """Return a world without the addresses of its parameters, report and message."""
    return World(
        num_ranks=len(windows),
        ranks_per_node=ranks_per_node or len(windows),
        num_blocks=num_blocks,
        num_warps=num_warps,
        num_params=num_params,
        windows=windows.ctypes.data,
        stride_bytes=windows.strides[0],
        window_bytes=windows.shape[1],
        abort_offset=abort_offset,
        limit_ns=int(limit_s * 1e9),
        seed=seed,
        bulk_times=("at_waits", "at_any_time", "at_once").index(bulk_times),
    )


def outcome_of(message: bytes, report: Sequence[int], found: str = "") -> Outcome:
    """Return an outcome from what a launch has left in memory."""
    told = dict(zip(REPORT_FIELDS, map(int, report), strict=True)) if report[0] else {}
    return Outcome(message.split(b"\0", 1)[0].decode(), told, found)


def _ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; without random addresses where its sanitizer cannot have them."""

    def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=host_build.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = ended(command)
    if "unexpected memory mapping" in done.stderr:
        done = ended(["setarch", "-R", *command])
    return done


def _rounded(place: int, unit: int) -> int:
    return -(-place // unit) * unit


def _run_in_file(
    library: Path,
    world: World,
    params: npt.NDArray[np.int64],
    windows: Windows,
    sanitizer: Sanitizer,
) -> Outcome:
    """Write a launch to a file that the program maps, run it, and read what it has left there."""
    world.params = ctypes.sizeof(World)
    world.report = _rounded(world.params + params.nbytes, _REPORT_ALIGNMENT)
    world.message = world.report + 8 * len(REPORT_FIELDS)
    begin = _rounded(world.message + MESSAGE_BYTES, PAGE_BYTES)
    with tempfile.TemporaryDirectory(prefix="ep-host-") as folder:
        path = Path(folder) / "launch"
        size = begin + len(windows) * windows.strides[0]
        memory = np.memmap(path, np.uint8, "w+", shape=(size,))
        memory[: world.params] = np.frombuffer(bytes(world), np.uint8)
        memory[world.params :][: params.nbytes] = params.view(np.uint8).reshape(-1)
        rows = memory[begin:].reshape(len(windows), -1)
        rows[:, : windows.shape[1]] = windows
        rows[:, windows.shape[1] :] = 0xA5
        memory.flush()
        _, program = host_build.runtime(sanitizer)
        done = _ended([str(program), str(library), str(path)])
        windows[:] = rows[:, : windows.shape[1]]
        found = done.stderr
        if done.returncode != 0 and not found:
            found = f"the program ended with {done.returncode}"
        if not (rows[:, windows.shape[1] :] == 0xA5).all():
            found += "bytes behind a window were written"
        report = memory[world.report : world.message].view(np.int64).tolist()
        return outcome_of(memory[world.message : begin].tobytes(), report, found)
