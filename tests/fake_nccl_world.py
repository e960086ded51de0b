"""What NCCL does between fake ranks."""

import ctypes
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from fake_gpus import Block, FakeMachine
from fake_ranks import Meeting, this_process


@dataclass(repr=False)
class FakeNccl:
    """What NCCL does among the ranks, and what goes wrong.

    Attributes:
        machine: the GPUs.
        version: NCCL's by rank, or everybody's by -1.
        no_window: ranks that get no window.
        unreachable: (rank, peer) whose windows are not mapped.
        errors: results in the background, by rank.
        absent: ranks that never come to a communicator's start.
        teams: groups of ranks that NVLink joins.
        configs: what communicators were made with, by rank, in order.
        groups: calls of each group that was carried out, by rank.
        devices: the GPU that was current when communicators were made, by rank, in order.
        ended: how communicators ended, by rank.
    """

    machine: FakeMachine
    version: dict[int, int] = field(default_factory=lambda: {-1: 23203})
    no_window: set[int] = field(default_factory=set)
    unreachable: set[tuple[int, int]] = field(default_factory=set)
    errors: dict[int, int] = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    teams: int = 1
    configs: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    groups: list[tuple[int, list[str]]] = field(default_factory=list)
    devices: list[tuple[int, int]] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    comms: dict[bytes, "Shared"] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def join(self, name: bytes, size: int, rank: int) -> "FakeLink":
        """Make a communicator; waits for all."""
        self.devices.append((rank, sys.modules["cupy.cuda.runtime"].getDevice()))
        if rank in self.absent:
            time.sleep(600)
        with self.lock:
            shared = self.comms.setdefault(name, Shared(size))
        shared.meeting.exchange(rank, None)
        return FakeLink(self, shared, size, rank)


@dataclass
class Shared:
    """What the ranks of a communicator share."""

    size: int
    mail: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    windows: dict[int, Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.meeting = Meeting(self.size)


class FakeLink:
    """A communicator on one rank."""

    def __init__(self, nccl: FakeNccl, shared: Shared, size: int, rank: int) -> None:
        self.nccl, self.shared, self.size, self.rank = nccl, shared, size, rank
        self.handle = id(self)
        #: Windows that are registered.
        self.open: list[Any] = []

    def send(self, address: int, num_bytes: int, peer: int) -> None:
        """Post bytes to a peer."""
        box = self.shared.mail.setdefault((self.rank, peer), [])
        box.append(ctypes.string_at(address, num_bytes))
        self._note(f"send {num_bytes} to {peer}")

    def recv(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Wait on a stream for a peer's bytes."""

        def look() -> bool:
            box = self.shared.mail.get((peer, self.rank))
            if not box:
                return False
            data = box.pop(0)
            assert len(data) == num_bytes, "a message is not as long as its receiver thinks"
            ctypes.memmove(address, data, num_bytes)
            return True

        this_process().state.setdefault("pending", {}).setdefault(stream, []).append(look)
        self._note(f"recv {num_bytes} from {peer}")

    def _note(self, call: str) -> None:
        state = this_process().state
        if state.get("depth", 0):
            state.setdefault("group", []).append(call)

    def blocks(self, send: int, recv: int, num_bytes: int, stream: int, *, same: bool) -> None:
        """Send a block to every rank and receive one of each."""
        for peer in range(self.size):
            self.send(send + (0 if same else peer * num_bytes), num_bytes, peer)
            self.recv(recv + peer * num_bytes, num_bytes, peer, stream)
