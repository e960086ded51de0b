"""The launches of an operation, and how they are put on a stream or into a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from comms.cuda.errors import explained
from comms.cuda.meeting import HostsMeeting
from comms.cuda.modules import LoadedKernel
from comms.cuda.notes import Notes
from comms.cuda.stopwatch import Stopwatch
from kernels.devices.cuda_code import MEET, STAMP, Place
from kernels.protocol import HostLaunch

if TYPE_CHECKING:
    from cupy.cuda import Graph, Stream

#: More runs than there ever are: a gate that is open.
_OPEN = 1 << 62


@dataclass(frozen=True, slots=True)
class Step:
    """A launch of a kernel, or a call of the host.

    Attributes:
        name: the phase it is recorded as, and the name of its code.
        num_blocks: blocks of each rank.
        args: what the kernel takes.
        host: the call, None for a kernel.
    """

    name: str
    num_blocks: int = 0
    args: tuple[int, ...] = ()
    host: HostLaunch | None = None


class Plan:
    """The steps of an operation.

    Attributes:
        steps: in order.
        watch: when each began and ended.
        in_graph: whether they are replayed from a graph.
        graph: that, once it is made.
    """

    def __init__(self, steps: Sequence[Step], *, in_graph: bool) -> None:
        self.steps = steps
        self.args = [tuple(np.int64(value) for value in step.args) for step in steps]
        self.watch = Stopwatch(len(steps))
        self.in_graph = in_graph
        self.graph: Graph | None = None

    @property
    def phases(self) -> list[str]:
        """The name of each step."""
        return [step.name for step in self.steps]


@dataclass(frozen=True, slots=True)
class Queue:
    """What puts plans on a stream.

    Attributes:
        stream: the stream.
        code: kernels by their names.
        place: whose ranks they run.
        notes: what kernels note.
        meet: offset of the words where ranks meet.
        hosts: where the ranks meet that do not reach each other's words, None where all do.
        call: makes a call of the host.
        profile: whether steps have ranges for profilers.
    """

    stream: Stream
    code: dict[str, LoadedKernel]
    place: Place
    notes: Notes
    meet: int
    hosts: HostsMeeting | None
    call: Callable[[HostLaunch], None]
    profile: bool

    def put(self, plan: Plan, runs: int, *, gated: bool) -> None:
        """Queue a meeting of all ranks and then the steps of a plan.

        Args:
            plan: the steps.
            runs: how often this process has met the others, this time included.
            gated: whether the meeting waits for the last step to be queued.

        Raises:
            EpbenchError: CUDA or a call of the host has failed.
        """
        self.notes.open_gate((runs - 1) * self._num_meets if gated else _OPEN)
        if plan.in_graph and plan.graph is None:
            plan.graph = self._captured(plan, runs)
        if plan.graph is not None:
            with explained("a graph cannot be launched"):
                plan.graph.launch(self.stream)
        else:
            self._put(plan, runs, in_graph=False)
        self.notes.open_gate(runs * self._num_meets)

    @property
    def _num_meets(self) -> int:
        """Return how often a rank meets others in a run."""
        return 1 if self.hosts is None else 2

    def _captured(self, plan: Plan, runs: int) -> Graph:
        """Return a graph of a plan."""
        with explained("launches cannot be captured in a graph"):
            self.stream.begin_capture()
            try:
                self._put(plan, runs, in_graph=True)
            except BaseException:
                # The stream would take nothing any more.
                with suppress(Exception):
                    self.stream.end_capture()
                raise
            return self.stream.end_capture()

    def _put(self, plan: Plan, runs: int, *, in_graph: bool) -> None:
        meeting = self.meet, self.notes.gate, self.notes.stamps
        self._launch(MEET, 1, meeting)
        if self.hosts is not None:
            # Gates are open on all hosts when these have met, and their ranks meet once more.
            self.hosts.put()
            self._launch(MEET, 1, meeting)
        plan.watch.mark(0, self.stream, in_graph=in_graph)
        for number, (step, args) in enumerate(zip(plan.steps, plan.args, strict=True), start=1):
            with self._range(step.name):
                if step.host is None:
                    self._launch(step.name, step.num_blocks, args)
                else:
                    if step.host.waits:
                        self.notes.open_gate(runs * self._num_meets)
                    self.call(step.host)
            plan.watch.mark(number, self.stream, in_graph=in_graph)
        self._launch(STAMP, 1, (self.notes.stamps,))

    def _launch(self, name: str, num_blocks: int, args: Sequence[Any]) -> None:
        grid = (num_blocks, self.place.num_ranks)
        self.code[name].launch(grid, [np.int64(value) for value in args], self.stream)

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        """Mark a step for profilers."""
        if not self.profile:
            yield
            return
        from cupy.cuda import nvtx

        nvtx.RangePush(f"epbench {name}")
        try:
            yield
        finally:
            nvtx.RangePop()
