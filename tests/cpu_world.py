"""A small world for tests of the cpu machine: ranks of this process, each on its own threads."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import kernels_for_tests as code
import numpy as np
import numpy.typing as npt
import pytest

from comms.cpu.machine import Machine
from comms.cpu.program import Launch, Place, Program
from comms.errors import EpbenchError
from comms.memory import POISON, Layout, Windows
from comms.waits import describe_waits
from kernels.isa import cpu
from kernels.isa.entry import fiber_entry

#: Far more than any program here takes; only one that hangs meets it.
END_S = 30.0
#: A limit of waits that only a program that hangs meets, before `END_S`.
WAIT_S = 15.0

REGIONS = {"x": 1 << 17, "recv": 1 << 17, "flags": 4096, "log": 1 << 19, "rendezvous": 8}

Step = tuple[int, ...]
#: What each (rank, sm, warp) runs.
Programs = Mapping[tuple[int, int, int], Sequence[Step]]
Times = npt.NDArray[np.int64]


@cache
def _compiled() -> Any:  # noqa: ANN401
    return fiber_entry(code.interpret, code.Params, cpu)


class CpuWorld:
    """Ranks with the same regions each, and one kernel that runs a program on every warp.

    Attributes:
        results: int64, where programs leave what they have read, by index.
        abort: the word that all ranks poll, int64 `(1,)`.
        machines: one of each rank.
    """

    def __init__(
        self,
        num_ranks: int = 2,
        *,
        num_nodes: int = 1,
        num_sms: int = 1,
        limits_s: Mapping[int, float] | None = None,
    ) -> None:
        """Make the ranks; `limits_s` is the limit of waits of the ranks that have their own."""
        self.num_ranks = num_ranks
        self.windows = Windows(Layout(REGIONS), num_ranks)
        self.results = np.full(8192, -7, np.int64)
        self.abort = np.zeros(1, np.int64)
        self._kept: list[npt.NDArray[Any]] = []
        self._hangs = False
        rng = np.random.default_rng(1)
        for rank in range(num_ranks):
            self.view(rank, "x")[:] = rng.integers(0, 256, REGIONS["x"])
            self.view(rank, "recv")[:] = POISON
            self.view(rank, "log")[:] = POISON
        self.machines = [
            Machine(
                Place(rank, num_ranks, num_ranks // num_nodes),
                self.windows,
                num_threads=num_sms,
                rendezvous=self.at("rendezvous"),
                abort_address=int(self.abort.ctypes.data),
                limit_s=(limits_s or {}).get(rank, WAIT_S),
            )
            for rank in range(num_ranks)
        ]

    def __enter__(self) -> "CpuWorld":
        return self

    def __exit__(self, *_: object) -> None:
        # Threads that hang would hang here, too.
        if not self._hangs:
            for machine in self.machines:
                machine.close()

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank."""
        return self.windows.view(rank, name, dtype)

    def at(self, name: str, distance: int = 0) -> int:
        """Return an offset of the window."""
        return self.windows.layout[name].offset + distance

    def flag(self, index: int) -> int:
        """Return the offset of a flag."""
        return self.at("flags", 8 * index)

    def addr(self, rank: int, name: str, distance: int = 0) -> int:
        """Return a local address."""
        return self.windows.base(rank) + self.at(name, distance)

    def result(self, index: int) -> int:
        """Return the address of a result."""
        return int(self.results.ctypes.data) + 8 * index

    def put_rows(self, rank: int, rows: list[int], row_bytes: int) -> Step:
        """Put rows of the own rank's `x` to the head of another's `recv` by one request."""
        listed = np.array(rows, np.int32)
        self._kept.append(listed)
        address = int(listed.ctypes.data)
        into, base = self.at("recv"), self.at("x")
        return (code.PUT_ROWS, rank, into, len(rows), address, base, row_bytes, 0)

    def prepare(self, *launches: Programs | Launch) -> list[Program]:
        """Return every rank's program: launches of programs of its warps, or `MEET`."""
        return [
            machine.prepare(
                [
                    launch if isinstance(launch, Launch) else self._launch(launch, rank, index)
                    for index, launch in enumerate(launches)
                ]
            )
            for rank, machine in enumerate(self.machines)
        ]

    def outcomes(
        self,
        programs: Sequence[Program],
        *,
        ranks: Sequence[int] | None = None,
        num_runs: int = 1,
        before: Mapping[int, Callable[[], None]] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[int, Times | EpbenchError]:
        """Run programs on all ranks at once; return each rank's times of the last run, or error.

        Args:
            programs: of every rank.
            ranks: those that run, None for all.
            num_runs: how often each rank runs its program, without waiting for the others.
            before: what ranks do before they begin.
            meanwhile: what this thread does after it has started the ranks.
        """
        found: dict[int, Times | EpbenchError] = {}

        def run(rank: int) -> None:
            if before is not None and rank in before:
                before[rank]()
            try:
                for _ in range(num_runs):
                    found[rank] = self.machines[rank].run(programs[rank])
            except EpbenchError as error:
                found[rank] = error

        ranks = range(self.num_ranks) if ranks is None else ranks
        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
        for thread in threads:
            thread.start()
        if meanwhile is not None:
            meanwhile()
        if not _all_end(threads, END_S):
            self.abort[0] = 1
            self._hangs = not _all_end(threads, END_S)
            pytest.fail(f"no end within {END_S} s, {self._hangs=} when told to end: {found}")
        assert sorted(found) == sorted(ranks), found
        return found

    def until(self, offset: int, count: int) -> None:
        """Let this thread wait until a word of rank 0 is `count`."""
        end = time.monotonic() + END_S
        while self.windows.word(0, offset) != count:
            if time.monotonic() > end:
                pytest.fail(
                    f"{self.windows.layout.describe(offset)} is not {count} after {END_S} s"
                )
            time.sleep(0.001)

    def times(self, *launches: Programs | Launch) -> dict[int, Times]:
        """Run launches on all ranks, which must succeed."""
        return succeeded(self.outcomes(self.prepare(*launches)))

    def _launch(self, programs: Programs, rank: int, index: int) -> Launch:
        num_blocks = 1 + max(sm for _, sm, _ in programs)
        num_warps = 1 + max(warp for _, _, warp in programs)
        table = np.zeros((num_blocks * num_warps, 2), np.int64)
        for (owner, sm, warp), steps in programs.items():
            if owner == rank and steps:
                words = np.zeros((len(steps), code.STEP_WORDS), np.int64)
                for number, step in enumerate(steps):
                    words[number, : len(step)] = step
                table[sm * num_warps + warp] = words.ctypes.data, len(steps)
                self._kept.append(words)
        self._kept.append(table)
        return Launch(
            name=f"launch{index}",
            entry=int(_compiled().address),
            num_blocks=num_blocks,
            num_warps=num_warps,
            params=np.array([num_warps, table.ctypes.data], np.int64),
            source=code.__file__,
        )


def succeeded(outcomes: Mapping[int, Times | EpbenchError]) -> dict[int, Times]:
    """Return the times of ranks that have all succeeded."""
    times = {}
    for rank, outcome in outcomes.items():
        if isinstance(outcome, EpbenchError):
            said = describe_waits(str(outcome), getattr(outcome, "waits", []))
            pytest.fail(f"rank {rank}: {said}")
        times[rank] = outcome
    return times


def _all_end(threads: Sequence[threading.Thread], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
