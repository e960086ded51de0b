"""One rank's machine: threads that stand for its SMs, and the programs that they run."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.cpu import report, state
from comms.cpu.loop import compiled_program
from comms.cpu.program import Launch, Place, Program
from comms.errors import EpbenchError
from comms.failed import ProgramFailed
from comms.fiber import STACK_BYTES, Stacks, start_address
from comms.memory import PAGE_BYTES, AnyWindows

#: Bytes of a block's scratch memory: addresses of the rows that one reduction reads.
SCRATCH_BYTES = 8192


class Machine:
    """Runs programs on threads; the calling thread is the first of them.

    A program is a list of launches, which run in order on all threads with no host between them.
    """

    def __init__(
        self,
        place: Place,
        windows: AnyWindows,
        *,
        num_threads: int,
        rendezvous: int,
        abort_address: int,
        limit_s: float,
    ) -> None:
        """Make the threads.

        Args:
            place: this rank.
            windows: windows of all ranks.
            num_threads: SMs of the rank.
            rendezvous: offset of a word where ranks meet, in rank 0's window.
            abort_address: address of a word that all ranks poll: not 0 ends their programs.
            limit_s: longest that a wait may take.
        """
        self._windows = windows
        self._num_threads = num_threads
        self._limit_s = limit_s
        self._run = compiled_program()
        self._stacks = Stacks(1)
        self._arrays = _arrays(place, windows, num_threads)
        h = self._arrays["machine"][0]
        h["rendezvous"], h["abort"] = rendezvous, abort_address
        h["limit_ns"], h["start_address"] = int(limit_s * 1e9), start_address()
        self._address = int(self._arrays["machine"].ctypes.data)
        self._go = [threading.Semaphore(0) for _ in range(num_threads - 1)]
        self._gone = threading.Semaphore(0)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(sm,), daemon=True, name=f"sm {sm}")
            for sm in range(1, num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        for go in self._go:
            go.release()
        for thread in self._threads:
            thread.join()

    def prepare(self, launches: Sequence[Launch]) -> Program:
        """Return a program of launches."""
        most = max(launch.num_warps for launch in launches)
        table = np.zeros(len(launches), state.LAUNCH)
        for row, launch in zip(table, launches, strict=True):
            assert launch.num_blocks <= self._num_threads, f"{launch.num_blocks=}"
            row["entry"], row["num_blocks"] = launch.entry, launch.num_blocks
            row["num_warps"], row["params"] = launch.num_warps, launch.params.ctypes.data
        return Program(
            launches=tuple(launches),
            max_warps=most,
            table=table,
            stamps=np.zeros((len(launches), self._num_threads), state.STAMP),
            warps=np.zeros(self._num_threads * most, state.WARP),
        )

    def run(self, program: Program) -> npt.NDArray[np.int64]:
        """Run a program to its end.

        Returns:
            Start and end of each launch in nanoseconds of CLOCK_MONOTONIC: the first thread's start
            and the last one's end, int64 `(num_launches, 2)`.

        Raises:
            ProgramFailed: a kernel failed or a wait reached its limit, here or on another rank.
        """
        self._load(program)
        for go in self._go:
            go.release()
        self._run(self._address, 0)
        for _ in self._go:
            self._gone.acquire()
        if self._arrays["machine"]["error"][0] != state.OK:
            self._raise(program)
        stamps = program.stamps
        times: npt.NDArray[np.int64] = np.stack(
            [stamps["start_ns"].min(axis=1), stamps["end_ns"].max(axis=1)], axis=1
        )
        return times

    def check_stacks(self) -> None:
        """Look for frames that left their stacks; programs that were timed have ended.

        Raises:
            EpbenchError: a kernel needs more stack than there is.
        """
        if overflowed := self._stacks.overflowed():
            self._stacks = Stacks(1)
            raise EpbenchError(
                f"a kernel needs more than {STACK_BYTES} bytes of stack: warp {overflowed[0]}"
            )

    def _serve(self, sm: int) -> None:
        while True:
            self._go[sm - 1].acquire()
            if self._closed:
                return
            self._run(self._address, sm)
            self._gone.release()

    def _load(self, program: Program) -> None:
        h = self._arrays["machine"][0]
        num_fibers = self._num_threads * program.max_warps
        if self._stacks.num_fibers < num_fibers:
            self._stacks = Stacks(num_fibers)
        self._arrays["blocks"]["num_live"] = 0
        h["launches"], h["num_launches"] = program.table.ctypes.data, len(program.launches)
        h["stamps"], h["warps"] = program.stamps.ctypes.data, program.warps.ctypes.data
        h["max_warps"] = program.max_warps
        h["stacks"], h["stack_bytes"] = self._stacks.base, STACK_BYTES
        h["error"], h["error_warp"] = state.OK, -1

    def _raise(self, program: Program) -> None:
        h = self._arrays["machine"][0]
        arrays = {**self._arrays, "warps": program.warps}
        error = int(h["error"])
        waits = report.blocked_warps(arrays, self._windows, program.launches)
        if error == state.ABORTED:
            sentence = "another rank's program failed"
        elif error == state.TIMEOUT:
            sentence = f"no end: a wait reached its limit of {self._limit_s:g} s"
            if h["error_warp"] < 0:
                sentence = f"a rank did not come to the start within {self._limit_s:g} s"
        else:
            sentence = report.describe_error(arrays, self._windows, program.launches)
        raise ProgramFailed(
            sentence,
            waits,
            is_timeout=error == state.TIMEOUT,
            is_cause=error != state.ABORTED,
        )


def _arrays(place: Place, windows: AnyWindows, num_threads: int) -> dict[str, npt.NDArray[Any]]:
    layout = windows.layout
    pages = np.full(layout.window_bytes // PAGE_BYTES, -1, np.int16)
    regions = np.zeros(len(layout.regions), state.REGION)
    for index, region in enumerate(layout):
        first = region.offset // PAGE_BYTES
        pages[first : first + -(-region.num_bytes // PAGE_BYTES)] = index
        regions[index] = (region.offset, region.num_bytes)
    arrays: dict[str, npt.NDArray[Any]] = {
        "machine": np.zeros(1, state.MACHINE),
        "blocks": np.zeros(num_threads, state.BLOCK),
        "groups": np.zeros(num_threads * state.NUM_GROUPS, state.GROUP),
        "bases": np.array([windows.base(rank) for rank in range(place.world_size)], np.int64),
        "pages": pages,
        "regions": regions,
        "scratch": np.zeros(num_threads * SCRATCH_BYTES, np.uint8),
    }
    h = arrays["machine"][0]
    h["rank"], h["world_size"] = place.rank, place.world_size
    h["ranks_per_node"] = place.ranks_per_node
    h["window_bytes"], h["num_threads"] = layout.window_bytes, num_threads
    h["scratch_bytes"] = SCRATCH_BYTES
    for name in ("blocks", "groups", "bases", "pages", "regions", "scratch"):
        h[name] = arrays[name].ctypes.data
    return arrays
