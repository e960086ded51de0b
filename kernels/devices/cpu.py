"""The `cpu` device: one rank of a world of processes, its kernels in real memory."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from comms.collectives import RowSplits
from comms.cpu import program
from comms.cpu.loop import compiled_program
from comms.cpu.machine import Machine
from comms.cpu.program import MEET, Place, Program
from comms.errors import RuntimeFailure
from comms.memory import Layout, huge
from comms.mpi.collectives import HostMemory, MpiCollectives
from comms.mpi.ranks import Ranks, cores, meet_asleep
from comms.mpi.window import SharedWindows
from kernels import packing
from kernels.devices import MAX_CPU_SMS as MAX_SMS
from kernels.devices.base import Limits, MeasuredDevice, Timed, World, user_regions
from kernels.isa import cpu
from kernels.isa.entry import fiber_entry
from kernels.protocol import Form, HostCall, HostLaunch, KernelLaunch, Op, Protocol

#: Bytes of the buffers of `copy_plain`, two of which no usual cache holds.
PLAIN_BYTES = 64 * 1024 * 1024
_RENDEZVOUS = "rendezvous"
_OPS: tuple[Op, ...] = ("dispatch", "combine")


@dataclass(frozen=True, slots=True)
class _Plan:
    phases: list[str]
    steps: list[Program | HostLaunch]


class CpuDevice(MeasuredDevice):
    """This rank's window and threads; every rank of the world makes one at the same time."""

    windows: SharedWindows

    def __init__(self, protocol: Protocol, world: World, ranks: Ranks, limits: Limits) -> None:
        """Compile, allocate and start the threads; collective.

        Raises:
            RuntimeFailure: there is not enough shared memory.
        """
        shape = world.shape
        assert shape.num_sms <= MAX_SMS <= packing.MAX_SMS, f"{shape.num_sms=}"
        super().__init__(protocol, world)
        self._own = ranks.rank
        self.ranks = (ranks.rank,)
        self._num_all = min(max(shape.num_sms, _free_cores(ranks)), MAX_SMS)
        self._plain: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None = None
        self._entries: dict[str, Any] = {}
        # The first rank compiles for all; the others find the result on the disk.
        if ranks.rank == 0:
            self._compile()
        meet_asleep(ranks)
        self._compile()
        regions = {**user_regions(protocol, world), **protocol.regions(shape), _RENDEZVOUS: 8}
        self.windows = SharedWindows(Layout(regions), ranks)
        # A communicator of its own: what a kernel's library sends never meets the harness's.
        self._comm = ranks.comm.Dup()
        # MPI is this device's own library, too.
        self._library = MpiCollectives(self._comm, HostMemory())
        self._kept: dict[str, RowSplits] = {}
        self._machine = Machine(
            Place(ranks.rank, shape.world_size, shape.ranks_per_node),
            self.windows,
            num_threads=max(self._num_blocks(launch) for launch in self._kernels()),
            rendezvous=self.windows.layout[_RENDEZVOUS].offset,
            abort_address=limits.abort_address,
            limit_s=limits.wait_s,
        )
        self._meet = self._machine.prepare([MEET])
        self._plans: dict[tuple[tuple[Op, ...], Form], _Plan] = {}
        ranks.comm.Barrier()

    def close(self) -> None:
        """End the threads and free the window; collective."""
        self._machine.close()
        self.windows.close()
        self._comm.Free()

    def run(self, ops: Sequence[Op], form: Form, *, is_timed: bool = False) -> Timed:
        """Let all ranks meet, then run operations in order with no host between kernels.

        Raises:
            ProgramFailed: a kernel failed, here or on another rank.
            RuntimeFailure: MPI failed.
        """
        plan = self._plan(tuple(ops), form)
        stamps = np.concatenate(
            [
                self._machine.run(step) if isinstance(step, Program) else self._call(step)
                for step in plan.steps
            ]
        )
        self._machine.check_stacks()
        starts, ends = stamps[1:, 0], stamps[1:, 1]
        return Timed(plan.phases, float(ends.max() - stamps[0, 1]), ends - starts)

    @property
    def copies_plainly(self) -> bool:
        """Whether `copy_plain`, which is one thread's, is to be held against kernels."""
        return self.world.shape.num_sms == 1

    def copy_plain(self, num_bytes: int) -> float:
        """Let all ranks meet, then copy bytes between private buffers by `memcpy`.

        The buffers have large pages where the system gives them, which shared memory seldom has.

        Returns:
            Nanoseconds that this rank took: the least that receiving the bytes could cost.
        """
        if self._plain is None:
            self._plain = (huge(PLAIN_BYTES), huge(PLAIN_BYTES))
        target, source = self._plain
        self._machine.run(self._meet)
        begun = time.monotonic_ns()
        for start in range(0, num_bytes, PLAIN_BYTES):
            count = min(PLAIN_BYTES, num_bytes - start)
            np.copyto(target[:count], source[:count])
        return time.monotonic_ns() - begun

    def _plan(self, ops: tuple[Op, ...], form: Form) -> _Plan:
        """Return the steps of operations: kernels that follow each other are one program."""
        if (ops, form) in self._plans:
            return self._plans[ops, form]
        phases: list[str] = []
        steps: list[Program | HostLaunch] = []
        batch = [MEET]
        for launch in [launch for op in ops for launch in self.protocol.launches(op, form)]:
            phases.append(launch.name)
            if isinstance(launch, KernelLaunch):
                batch.append(self._launch(launch, form))
                continue
            if batch:
                steps.append(self._machine.prepare(batch))
                batch = []
            steps.append(launch)
        if batch:
            steps.append(self._machine.prepare(batch))
        self._plans[ops, form] = _Plan(phases, steps)
        return self._plans[ops, form]

    def _kernels(self) -> list[KernelLaunch]:
        return [
            step
            for op in _OPS
            for form in get_args(Form)
            for step in self.protocol.launches(op, form)
            if isinstance(step, KernelLaunch)
        ]

    def _num_blocks(self, launch: KernelLaunch) -> int:
        return self.world.shape.num_sms if launch.sms == "comm" else self._num_all

    def _compile(self) -> None:
        compiled_program()
        for launch in self._kernels():
            if launch.name not in self._entries:
                entry = fiber_entry(launch.kernel, launch.params, cpu)  # type: ignore[arg-type]
                self._entries[launch.name] = entry

    def _launch(self, launch: KernelLaunch, form: Form) -> program.Launch:
        num_blocks = self._num_blocks(launch)
        num_warps = launch.warps(self.world.shape)
        params = self._params(launch, self._own, form, num_blocks, num_warps)
        return program.Launch(
            name=launch.name,
            entry=self._entries[launch.name].address,
            num_blocks=num_blocks,
            num_warps=num_warps,
            params=np.array(params, np.int64),
            source=inspect.getsourcefile(launch.kernel) or "",
        )

    def _call(self, step: HostLaunch) -> npt.NDArray[np.int64]:
        from mpi4py import MPI

        start = time.monotonic_ns()
        try:
            step.call(
                HostCall(
                    comm=self._comm,
                    shape=self.world.shape,
                    settings=self._settings,
                    view=self._named,
                    library=self._library,
                    kept=self._kept,
                )
            )
        except MPI.Exception as error:
            raise RuntimeFailure(f"MPI failed in {step.name}: {error}") from error
        return np.array([[start, time.monotonic_ns()]], np.int64)

    def _named(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        region = self._settings.get(name, name)
        assert isinstance(region, str), f"{name=} is a number"
        return self.view(self._own, region, dtype)


def _free_cores(ranks: Ranks) -> int:
    """Return the cores that a rank has for itself: its own, shared with ranks that may use them.

    Ranks are bound to cores of their own by some launchers, and to none by others.
    """
    own = set(cores())
    sharers = sum(not own.isdisjoint(others) for others in ranks.comm.allgather(cores()))
    return max(len(own) // sharers, 1)
