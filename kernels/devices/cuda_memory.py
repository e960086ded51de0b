"""What a process has on its GPU for one protocol: windows, notes, abort words and a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from comms.cuda import abort
from comms.cuda.abort import AbortWords
from comms.cuda.cards import Card
from comms.cuda.errors import explained
from comms.cuda.hbm import Hbm
from comms.cuda.kept_nccl import KeptNccl
from comms.cuda.machine import Machine, machine_words
from comms.cuda.meeting import HostsMeeting
from comms.cuda.memory import CardWindows, give_back
from comms.cuda.modules import LoadedKernel
from comms.cuda.notes import Notes
from comms.cuda.windows import Memory, VirtualWindows, open_windows
from comms.errors import EpbenchError, RuntimeFailure
from comms.memory import Layout
from comms.mpi.together import together
from kernels.devices.base import Limits, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comms.mpi.ranks import Ranks

#: Where ranks meet: arrivals of all ranks, and how often this one has met.
MEET, MEET_BYTES = "meet", 16
#: Regions that kernels of the harness need, beside those of user and protocol.
REGIONS = {MEET: MEET_BYTES, abort.REGION: abort.REGION_BYTES}


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closes)


@dataclass(frozen=True, slots=True)
class Options:
    """How a device works.

    Attributes:
        card: this process's GPU.
        limits: what ends kernels.
        nccl: the communicators of the world.
        memory: how ranks that are processes map each other's memory.
        graph: whether launches are replayed from a graph.
        profile: whether launches have ranges and code has lines for profilers.
    """

    card: Card
    limits: Limits
    nccl: KeptNccl
    memory: Memory = "ipc"
    graph: bool = False
    profile: bool = False


class CardMemory:
    """A process's windows on its GPU, and what its kernels and host tell each other.

    Attributes:
        windows: of all ranks that it reaches.
        is_apart: whether some rank does not reach all others; the same on all ranks.
        hosts: where ranks meet that do not, None where nothing has opened it.
        stride: bytes between the windows of virtual ranks, 0 where there are none.
        stream: kernels' own.
        notes: what kernels and host note.
        abort: what ends kernels.
        hbm: buffers that no kernel uses.
    """

    windows: CardWindows

    def __init__(
        self, layout: Layout, world: World, ranks: Ranks, options: Options, *, zero: bool = False
    ) -> None:
        """Allocate; collective.

        A world in one process has windows that nobody else maps.

        Args:
            layout: regions.
            world: sizes.
            ranks: the processes.
            options: how the device works.
            zero: whether NCCL's copy engines shall serve the windows.

        Raises:
            RuntimeFailure: CUDA fails, there is not enough memory, or ranks do not reach each
                other; in the same words on all ranks, and nothing stays allocated.
        """
        self._ranks = ranks
        self._world = world
        self._options = options
        self._held: list[_Closes] = []
        self.stride = 0
        self.hosts: HostsMeeting | None = None
        try:
            if ranks.world_size == 1:
                virtual = self._hold(VirtualWindows(layout, world.shape.world_size))
                self.windows, self.stride = virtual, virtual.stride
            else:
                self.windows = self._hold(
                    open_windows(options.memory, layout, ranks, options.nccl, zero=zero)
                )
            self._bases = [self.windows.base(rank) for rank in range(world.shape.world_size)]
            self.is_apart = any(together(ranks, self._misses_some))
            together(ranks, self._allocate)
        except EpbenchError:
            self.close()
            raise

    def let_hosts_meet(self) -> None:
        """Open the meeting of ranks that do not reach each other's memory; collective.

        Raises:
            RuntimeFailure: NCCL or CUDA failed.
            TimeoutFailure: NCCL did not come to an end.
        """
        communicators = self._options.nccl.get()
        self.hosts = self._hold(HostsMeeting(communicators, self._ranks, self.stream.ptr))

    def tell(self, kernels: Sequence[LoadedKernel]) -> None:
        """Tell kernels where windows and notes are.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        shape = self._world.shape
        words = machine_words(
            self._bases,
            Machine(
                first_rank=self.windows.ranks[0],
                world_size=shape.world_size,
                ranks_per_node=shape.ranks_per_node,
                abort_offset=self.windows.layout[abort.REGION].offset,
                limit_ns=int(self._options.limits.wait_s * 1e9),
                report=self.notes.report,
            ),
        )
        for kernel in kernels:
            kernel.tell(words, self.stream.ptr)

    def reset(self) -> None:
        """Let kernels run again; collective, when the kernels of all ranks have ended."""
        # The first time also waits for what this process has told others.
        for _ in range(2):
            give_back(self.abort.clear)
            self._ranks.comm.Barrier()
        give_back(self._clear)

    def close(self) -> None:
        """Free everything; collective."""
        while self._held:
            self._held.pop().close()

    def _misses_some(self) -> bool:
        """Return whether this rank does not reach the memory of some rank of another node."""
        per_node = self._world.shape.ranks_per_node
        rank = self.windows.ranks[0]
        first = rank - rank % per_node
        for peer in range(first, first + per_node):
            if not self._bases[peer]:
                raise RuntimeFailure(
                    f"rank {rank} does not reach the memory of rank {peer} of its node: launch "
                    "the ranks of a node on one host"
                )
        return 0 in self._bases

    def _allocate(self) -> None:
        shape = self._world.shape
        with explained("a stream cannot be made"):
            from cupy.cuda import Stream

            self.stream = Stream(non_blocking=True)
        self.abort = self._hold(AbortWords(self.windows, shape.world_size))
        tokens = [int(self._world.num_tokens[rank]) for rank in self.windows.ranks]
        self.notes = self._hold(Notes(tokens, self.stream.ptr))
        self.hbm = self._hold(Hbm(self.stream))

    def _clear(self) -> None:
        self.notes.clear()
        for rank in self.windows.ranks:
            self.windows.fill(rank, MEET, 0, MEET_BYTES)

    def _hold(self, thing: T) -> T:
        self._held.append(thing)
        return thing
