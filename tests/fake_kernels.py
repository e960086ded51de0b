"""Runs kernels of a fake GPU: those of protocols by their code for device `cpu`, on its memory."""

import ctypes
import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.cpu import state
from comms.cpu.machine import Machine as CpuMachine
from comms.cpu.program import Launch, Place, Program
from comms.cuda.machine import ABORTED, MAX_RANKS, NO_FLAG, TIMED_OUT, Machine
from comms.failed import ProgramFailed
from comms.memory import PAGE_BYTES, Layout
from kernels.isa import cpu
from kernels.isa.entry import fiber_entry
from kernels.protocol import KernelLaunch

#: Arrivals and reports of ranks that are threads of one process.
_ATOMIC = threading.Lock()
#: CPython 3.11 counts the depth of what it parses over all threads.
_COMPILING = threading.Lock()


def _words(address: int, count: int = 1) -> npt.NDArray[np.int64]:
    """Return words of the fake GPU's memory."""
    memory: Any = (ctypes.c_int64 * count).from_address(address)
    return np.frombuffer(memory, np.int64)


@dataclass(frozen=True)
class Constant:
    """What the host has written to a module."""

    bases: list[int]
    machine: Machine

    @classmethod
    def of(cls, words: npt.NDArray[np.int64]) -> "Constant":
        """Return what the words of a module say."""
        machine = Machine(*words[MAX_RANKS:].tolist())
        return cls(words[: machine.world_size].tolist(), machine)

    def abort_word(self, rank: int) -> npt.NDArray[np.int64]:
        """Return the word that ends a rank's kernels."""
        return _words(self.bases[rank] + self.machine.abort_offset)

    def report(self, values: tuple[int, ...]) -> None:
        """Note a wait that failed, unless another has, and end the node's kernels."""
        cause, rank = values[:2]
        with _ATOMIC:
            report = _words(self.machine.report, 8)
            if report[0] == 0:
                report[:] = values
        if cause == TIMED_OUT:
            first = rank - rank % self.machine.ranks_per_node
            for peer in range(first, min(first + self.machine.ranks_per_node, len(self.bases))):
                self.abort_word(peer)[0] = 1


def run_meet(constant: Constant, num_ranks: int, meet: int, gate: int, stamps: int) -> None:
    """Do what `epbench_meet` does, for all virtual ranks."""
    machine = constant.machine
    own = range(machine.first_rank, machine.first_rank + num_ranks)
    epochs = {}
    for rank in own:
        words = _words(constant.bases[rank] + meet, 2)
        words[1] += 1
        epochs[rank] = int(words[1])
    for rank in own:
        seen = _until(constant, rank, gate, epochs[rank], NO_FLAG)
        if seen is None:
            return
    reached = [base for base in constant.bases if base]
    with _ATOMIC:
        for _ in own:
            for base in reached:
                _words(base + meet)[0] += 1
    for virtual, rank in enumerate(own):
        goal = epochs[rank] * len(reached)
        if _until(constant, rank, constant.bases[rank] + meet, goal, meet) is None:
            return
        _words(stamps + 16 * virtual)[0] = time.monotonic_ns()


def run_stamp(num_ranks: int, stamps: int) -> None:
    """Do what `epbench_stamp` does."""
    for virtual in range(num_ranks):
        _words(stamps + 16 * virtual + 8)[0] = time.monotonic_ns()


def _until(constant: Constant, rank: int, address: int, goal: int, offset: int) -> int | None:
    """Wait for a word; None where that has failed."""
    begun = time.monotonic_ns()
    while (seen := int(_words(address)[0])) < goal:
        cause = 0
        if constant.abort_word(rank)[0]:
            cause = ABORTED
        elif time.monotonic_ns() - begun > constant.machine.limit_ns:
            cause = TIMED_OUT
        if cause:
            constant.report((cause, rank, 0, 0, offset, seen, goal, 0))
            return None
        time.sleep(0.0002)
    return seen


class _Windows:
    """Windows as a module's constant tells them."""

    def __init__(self, bases: list[int], num_bytes: int) -> None:
        self.layout = Layout({"window": num_bytes - PAGE_BYTES})
        self._bases = bases

    def base(self, rank: int) -> int:
        return self._bases[rank]

    def word(self, rank: int, offset: int) -> int:
        return int(_words(self._bases[rank] + offset)[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        raise NotImplementedError


def run_kernel(
    launch: KernelLaunch,
    num_warps: int,
    constant: Constant,
    grid: tuple[int, ...],
    args: tuple[int, ...],
    window_bytes: Callable[[int], int],
    lost: set[int],
) -> None:
    """Run a kernel of a protocol for all virtual ranks at once.

    Args:
        launch: kernel and parameters.
        num_warps: warps of a block.
        constant: what its module was told.
        grid: blocks of a rank, ranks.
        args: stride, address of the tokens of each rank, and the parameters of the first rank.
        window_bytes: bytes of an allocation, by its address.
        lost: ranks on which nothing happens.
    """
    stride, num_tokens, *values = args
    fields = launch.params._fields
    assert len(values) == len(fields), f"{launch.name} takes {fields}"
    num_bytes = stride or window_bytes(constant.bases[constant.machine.first_rank])
    windows = _Windows(constant.bases, num_bytes)
    with _COMPILING:
        entry = int(fiber_entry(launch.kernel, launch.params, cpu).address)  # type: ignore[arg-type]
    errors: list[Exception] = []

    def run(virtual: int) -> None:
        params = [
            _argument(name, value, virtual, stride, num_tokens)
            for name, value in zip(fields, values, strict=True)
        ]
        if constant.machine.first_rank + virtual in lost:
            return
        try:
            _run_rank(launch, entry, num_warps, constant, windows, grid[0], params, virtual)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(virtual,)) for virtual in range(grid[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _argument(name: str, value: int, virtual: int, stride: int, num_tokens: int) -> int:
    """Return a parameter of a virtual rank, as the entry works it out."""
    if name == "rank":
        return value + virtual
    if name == "num_tokens":
        return int(_words(num_tokens + 8 * virtual)[0])
    return value + virtual * stride if name.endswith("_addr") else value


def _run_rank(
    launch: KernelLaunch,
    entry: int,
    num_warps: int,
    constant: Constant,
    windows: _Windows,
    num_blocks: int,
    params: list[int],
    virtual: int,
) -> None:
    told = constant.machine
    rank = told.first_rank + virtual
    machine = CpuMachine(
        Place(rank, told.world_size, told.ranks_per_node),
        windows,
        num_threads=num_blocks,
        rendezvous=0,
        abort_address=constant.bases[rank] + told.abort_offset,
        limit_s=told.limit_ns / 1e9,
    )
    program = machine.prepare(
        [
            Launch(
                name=launch.name,
                entry=entry,
                num_blocks=num_blocks,
                num_warps=num_warps,
                params=np.array(params, np.int64),
                source=inspect.getsourcefile(launch.kernel) or "",
            )
        ]
    )
    try:
        machine.run(program)
    except ProgramFailed as failed:
        if failed.is_cause and not failed.is_timeout:
            raise
        cause = TIMED_OUT if failed.is_timeout else ABORTED
        constant.report((cause, rank, *_first_wait(program, windows, rank)))
    finally:
        machine.close()


def _first_wait(program: Program, windows: _Windows, rank: int) -> tuple[int, ...]:
    """Return block, warp, offset, seen, wanted and line of a warp that waits."""
    for warp in program.warps:
        if warp["state"] == state.WAIT_GE:
            offset = int(warp["wait_offset"])
            seen = windows.word(rank, offset)
            wanted, line = int(warp["wait_value"]), int(warp["line"])
            return int(warp["block"]), int(warp["index"]), offset, seen, wanted, line
    return 0, 0, NO_FLAG, 0, 1, 1
