"""Ranks that are threads of the test, each taken for a process of its own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from comms.mpi.ranks import Ranks

#: Only a rank that waits for another that does not come meets it.
END_S = 20.0
_own = threading.local()


class Process:
    """What a fake process has of its own; fakes keep their state here.

    Attributes:
        rank: which.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.state: dict[str, Any] = {}


def this_process() -> Process:
    """Return the process that this thread belongs to; the test's own thread is rank 0's."""
    if not hasattr(_own, "process"):
        _own.process = Process(0)
    process: Process = _own.process
    return process


def this_thread() -> dict[str, Any]:
    """Return what this thread has of its own."""
    if not hasattr(_own, "state"):
        _own.state = {}
    state: dict[str, Any] = _own.state
    return state


class ProcessThread(threading.Thread):
    """A thread of the same fake process as the one that makes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._process = this_process()

    def run(self) -> None:
        """Run as that process."""
        _own.process = self._process
        super().run()


class Meeting:
    """Lets ranks wait for each other, and exchange values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size

    def exchange(self, rank: int, value: object) -> list[Any]:
        """Return every rank's value."""
        self._values[rank] = value
        self._barrier.wait(END_S)
        values = list(self._values)
        self._barrier.wait(END_S)
        return values


class FakeComm:
    """As much of an MPI communicator as is used here."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting = meeting
        self.rank = rank
        self.size = meeting.size

    def allgather(self, sendobj: object) -> list[Any]:
        """Return every rank's object."""
        return self._meeting.exchange(self.rank, sendobj)

    def gather(self, sendobj: object) -> list[Any] | None:
        """Return every rank's object to the first."""
        values = self.allgather(sendobj)
        return values if self.rank == 0 else None

    def bcast(self, obj: object) -> Any:  # noqa: ANN401
        """Return the first rank's object."""
        return self.allgather(obj)[0]

    def Barrier(self) -> None:  # noqa: N802
        """Wait for all."""
        self._meeting.exchange(self.rank, None)

    def Dup(self) -> "FakeComm":  # noqa: N802
        """Return a communicator of the same ranks."""
        return FakeComm(self.allgather(Meeting(self.size))[0], self.rank)

    def Free(self) -> None:  # noqa: N802
        """Give it back."""


def run_ranks(
    size: int, work: Callable[[Ranks], Any], hosts: Sequence[int] | None = None
) -> list[Any]:
    """Run ranks; return what each has returned, or the error that it raised.

    Fails where some rank is left waiting.
    """
    meeting = Meeting(size)
    hosts = [0] * size if hosts is None else hosts
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        _own.process = Process(rank)
        local = [peer for peer in range(size) if hosts[peer] == hosts[rank]]
        comm: Any = FakeComm(meeting, rank)
        ranks = Ranks(
            comm=comm,
            rank=rank,
            world_size=size,
            local_rank=local.index(rank),
            local_size=len(local),
            host=hosts[rank],
            num_hosts=len(set(hosts)),
            library="threads",
        )
        try:
            found[rank] = work(ranks)
        except Exception as error:  # noqa: BLE001
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * END_S)
        assert not thread.is_alive(), "a rank is left waiting"
    assert not any(isinstance(value, threading.BrokenBarrierError) for value in found), found
    return found
