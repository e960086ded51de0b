"""The `cuda` device: the ranks of a process on its GPU, kernels launched in order on one stream.

A process has one rank, or all ranks of the world as virtual ranks, which share each launch. The
host queues everything behind a meeting of all ranks, opens the gate of that meeting, and then looks
at the stream until it is done: between kernels it does nothing, but for host launches.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from comms.cuda import machine
from comms.cuda.clocks import Clock, Clocks
from comms.cuda.memory import CardWindows
from comms.cuda.stopwatch import settle
from comms.errors import EpbenchError
from comms.failed import ProgramFailed
from comms.memory import Layout
from comms.mpi.together import together
from kernels.devices.base import MeasuredDevice, Timed, World, user_regions
from kernels.devices.cuda_code import Place, compile_for, load_all, refuse
from kernels.devices.cuda_library import CardLibrary, refuse_for
from kernels.devices.cuda_memory import MEET, REGIONS, CardMemory, Options
from kernels.devices.cuda_plan import Plan, Queue, Step
from kernels.devices.cuda_refusals import other_gpu, refuse_apart, refuse_graph, refuse_ipc
from kernels.protocol import Form, HostLaunch, KernelLaunch, Op, Protocol

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

__all__ = ["CudaDevice", "Options"]


class CudaDevice(MeasuredDevice):
    """This process's ranks; every process of the world makes one at the same time."""

    windows: CardWindows

    def __init__(self, protocol: Protocol, world: World, ranks: Ranks, options: Options) -> None:
        """Compile, load and allocate; collective, and on the thread that runs.

        Raises:
            DoesNotFit: the GPU cannot hold the kernels' blocks at once, or not this way.
            UsageError: a kernel does not compile.
            RuntimeFailure: CUDA fails, or there is not enough memory.
        """
        super().__init__(protocol, world)
        shape = world.shape
        is_virtual = ranks.world_size < shape.world_size
        assert ranks.world_size in (1, shape.world_size), f"{ranks.world_size=}"
        self.ranks = range(shape.world_size) if is_virtual else (ranks.rank,)
        self._is_alone = ranks.world_size == 1
        self._options = options
        self._place = Place(options.card, len(self.ranks), is_virtual)
        if options.graph:
            refuse_graph(protocol)
        refuse_ipc(protocol, ranks, options.memory)
        refuse(together(ranks, lambda: self._refuses(ranks.library)))
        cubins = compile_for(protocol, shape, self._place, ranks, line_info=options.profile)
        code = load_all(cubins, protocol, shape, self._place, ranks)
        regions = {**user_regions(protocol, world), **protocol.regions(shape), **REGIONS}
        zero = protocol.library is not None and protocol.library(shape).zero_ctas
        self._memory = CardMemory(Layout(regions), world, ranks, options, zero=zero)
        self.windows = self._memory.windows
        try:
            if self._memory.is_apart:
                refuse_apart(protocol)
                self._memory.let_hosts_meet()
            together(ranks, lambda: self._memory.tell(list(code.values())))
            stream = self._memory.stream.ptr
            self._library = CardLibrary(protocol, shape, ranks, stream, options.nccl)
        except EpbenchError:
            self._memory.close()
            raise
        self._clocks = Clocks(options.card)
        self._plans: dict[tuple[tuple[Op, ...], Form], Plan] = {}
        self._runs, self._is_told = 0, False
        # Where each launch waits for its end, the host never comes to open the gate.
        blocking = os.environ.get("CUDA_LAUNCH_BLOCKING", "") not in ("", "0")
        self._may_gate = not blocking and not options.profile
        self._queue = Queue(
            stream=self._memory.stream,
            code=code,
            place=self._place,
            notes=self._memory.notes,
            meet=self.windows.layout[MEET].offset,
            hosts=self._memory.hosts,
            call=self._call,
            profile=options.profile,
        )

    def close(self) -> None:
        """Free windows and buffers; collective."""
        # Graphs, events and the stream go with the device, on the thread whose GPU is current, and
        # not where garbage is collected: the queue's calls would keep it until then.
        self._plans.clear()
        del self._queue
        self._library.close()
        self._memory.close()

    def run(self, ops: Sequence[Op], form: Form, *, is_timed: bool = False) -> Timed:
        """Let all ranks meet, then run operations in order with no host between kernels."""
        plan = self._plan(tuple(ops), form)
        self._runs += 1
        self._is_told = False
        try:
            if is_timed:
                self._memory.hbm.flush()
            # Whatever a kernel's first launch makes the driver do must not wait for the gate.
            self._queue.put(plan, self._runs, gated=is_timed and self._may_gate)
            self._memory.notes.collect()
            settle(self._queue.stream.ptr, self._look)
        except EpbenchError as error:
            self._raise_after(error)
        if self._memory.notes.reported().cause:
            self._tell_others()
            raise self._failed()
        stamps = self._memory.notes.stamped()
        return Timed(
            plan.phases,
            plan.watch.total_ns(),
            plan.watch.phases_ns(),
            timer_ns=int(stamps[:, 1].max() - stamps[:, 0].min()),
        )

    @property
    def copies_plainly(self) -> bool:
        """Whether a copy within the GPU is to be held against kernels: all ranks share it."""
        return self._is_alone

    def copy_plain(self, num_bytes: int) -> float:
        """Copy bytes within the GPU by CUDA; return nanoseconds."""
        self._memory.hbm.copy(num_bytes)
        settle(self._queue.stream.ptr, self._look)
        return self._memory.hbm.copied_ns()

    def clock(self) -> Clock | None:
        """Return the clock of the GPU's SMs."""
        return self._clocks.look()

    def reset(self) -> None:
        """Let kernels run again; collective, when the kernels of all ranks have ended."""
        self._runs = 0
        self._memory.reset()

    def write(self, rank: int, name: str, array: npt.NDArray[Any]) -> None:
        """Copy an array of the host to the start of a region of an own rank."""
        self.windows.write(rank, name, array)

    def read(
        self,
        rank: int,
        name: str,
        dtype: npt.DTypeLike = np.uint8,
        num_bytes: int | None = None,
    ) -> npt.NDArray[Any]:
        """Return a copy of the first bytes of a region of an own rank, all by default."""
        return self.windows.read(rank, name, dtype, num_bytes=num_bytes)

    def fill(self, rank: int, name: str, byte: int, num_bytes: int) -> None:
        """Set the first bytes of a region of an own rank."""
        self.windows.fill(rank, name, byte, num_bytes)

    def _plan(self, ops: tuple[Op, ...], form: Form) -> Plan:
        if (ops, form) not in self._plans:
            steps = [
                self._step(launch, form)
                for op in ops
                for launch in self.protocol.launches(op, form)
            ]
            self._plans[ops, form] = Plan(steps, in_graph=self._options.graph)
        return self._plans[ops, form]

    def _step(self, launch: KernelLaunch | HostLaunch, form: Form) -> Step:
        if isinstance(launch, HostLaunch):
            return Step(launch.name, host=launch)
        shape, place = self.world.shape, self._place
        num_blocks, num_warps = place.num_blocks(launch, shape), launch.warps(shape)
        params = self._params(launch, self.ranks[0], form, num_blocks, num_warps)
        args = (self._memory.stride, self._memory.notes.num_tokens, *params)
        return Step(launch.name, num_blocks, args)

    def _refuses(self, mpi: str) -> str | None:
        """Return why this rank cannot run the protocol, or None."""
        options = self._options
        return other_gpu(self.world.fabric, options.card) or refuse_for(
            self.protocol,
            self.world.shape,
            options.memory,
            ranks_per_card=len(self.ranks),
            mpi=mpi,
        )

    def _call(self, step: HostLaunch) -> None:
        self._library.call(step, self._named)

    def _named(self, name: str, dtype: npt.DTypeLike) -> Any:  # noqa: ANN401
        region = self._settings.get(name, name)
        assert isinstance(region, str), f"{name=} is a number"
        return self.view(self.ranks[0], region, dtype)

    def _look(self) -> None:
        """End kernels where another rank has ended the job or has failed, or the library has."""
        if self._is_told:
            return
        word = ctypes.c_int64.from_address(self._options.limits.abort_address)
        if not word.value:
            self._library.check(hosts_meet=self._memory.hosts is not None)
            return
        self._is_told = True
        self._memory.abort.end()
        self._library.abort()

    def _tell_others(self) -> None:
        word = ctypes.c_int64.from_address(self._options.limits.abort_address)
        word.value = word.value or self.ranks[0] + 1
        self._look()

    def _raise_after(self, error: EpbenchError) -> NoReturn:
        """Let the kernels of all ranks end, then raise what tells most."""
        with suppress(EpbenchError):
            self._tell_others()
            self._memory.notes.collect()
            settle(self._queue.stream.ptr, self._look)
        if self._memory.notes.reported().cause == machine.TIMED_OUT:
            raise self._failed() from error
        raise error

    def _failed(self) -> ProgramFailed:
        report = self._memory.notes.reported()
        told = machine.describe(report, self.windows.layout, MEET, self._options.limits.wait_s)
        return ProgramFailed(
            told.sentence, told.waits, is_timeout=told.is_timeout, is_cause=told.is_timeout
        )
