"""What the pages of several hosts tell each other: turns, and the ends of kernels and of the job.

On the first rank of each host a thread looks at the page and sends what has changed to the first
ranks of the other hosts. It makes no MPI call that waits for another host: one may be gone. A
message says all that its host has to say, so a later one stands for those before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from comms.errors import TimeoutFailure, UsageError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from comms.mpi.ranks import Ranks

_LOOK_S = 0.02
_POLL_S = 0.002
#: How long the end of a good job waits for hosts that do not answer.
_END_S = 2.0
#: How long its thread may take to end: two such waits, and a step.
_JOIN_S = 3 * _END_S
_TAG = 1


class State(NamedTuple):
    """What a host tells the others.

    Attributes:
        host: its number.
        turn: the last turn that was set.
        generation: how often kernels were let run again.
        is_aborted: whether the kernels of this generation shall end.
        exit_code: what the job ends with if a rank of this host says so, else 0.
        is_leaving: whether all its ranks end because of an exit code, and wait for other hosts.
    """

    host: int
    turn: int
    generation: int
    is_aborted: int
    exit_code: int
    is_leaving: int


class Page(Protocol):
    """The shared page of this rank's host."""

    def state(self) -> State:
        """Return what other hosts shall know."""

    def adopt(self, state: State) -> None:
        """Take over what another host has told."""

    def set_hosts_leaving(self) -> None:
        """Note that the ranks of all hosts end."""


class _Sent(NamedTuple):
    request: Any
    #: Kept until the request is done.
    words: npt.NDArray[np.int64]
    state: State


class Relay:
    """Carries the state of this host's page to other hosts, and theirs to it."""

    def __init__(self, ranks: Ranks, page: Page) -> None:
        """Begin to look, on the first rank of each host; collective.

        Args:
            ranks: the job.
            page: of this rank's host.

        Raises:
            UsageError: MPI cannot be called by two threads at once.
        """
        check_threads(ranks.library)
        self._page = page
        hosts = ranks.comm.allgather(ranks.host)
        firsts = [hosts.index(host) for host in range(ranks.num_hosts)]
        self._hosts = hosts
        self._peers = [rank for rank in firsts if hosts[rank] != ranks.host]
        self._staying = set(hosts) - {ranks.host}
        # All ranks are in it: where the first rank of a host has died, another one tells.
        self._comm: Intracomm = ranks.comm.Dup()
        self._under_way: dict[int, _Sent] = {}
        self._told: dict[int, State] = {}
        self._heard = np.zeros(len(State._fields), np.int64)
        self._hearing: Any = None
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None
        if ranks.rank in firsts:
            self._thread = threading.Thread(target=self._run, daemon=True, name="relay")
            self._thread.start()

    def tell(self, state: State) -> bool:
        """Begin to send a state to all hosts that do not have it; return whether all have it.

        By the relay's own thread, or on another rank of the host once that one's process is dead.
        """
        from mpi4py import MPI

        for peer in list(self._peers):
            try:
                self._tell_one(peer, state)
            except MPI.Exception:
                # It is gone, and its launcher ends the job; the others shall hear of it.
                self._peers.remove(peer)
        return all(self._told.get(peer) == state for peer in self._peers)

    def close(self) -> None:
        """End the relay when all ranks have nothing more to tell; all ranks must come.

        The communicator is left to MPI's end: a host that does not answer holds up nobody for long.

        Raises:
            TimeoutFailure: MPI does not return to the relay, and so cannot be ended.
        """
        if self._thread is None:
            self._meet(lambda: None)
            return
        self._is_ending.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            raise TimeoutFailure(
                f"MPI has not returned for {_JOIN_S:g} s from a message between hosts; all specs "
                "have run"
            )

    def _run(self) -> None:
        from mpi4py import MPI

        while not self._is_ending.wait(_LOOK_S):
            self._step()
        deadline = time.monotonic() + _END_S
        while not self._step() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        # A message that is done was received: after the meeting none is under way.
        self._meet(self._hear)
        if self._hearing is not None:
            with suppress(MPI.Exception):
                self._hearing.Cancel()
                self._hearing.Wait()

    def _step(self) -> bool:
        """Receive and send what there is; return whether all hosts have this one's state."""
        self._hear()
        state = self._page.state()
        is_told = self.tell(state)
        if is_told and state.is_leaving and not self._staying:
            self._page.set_hosts_leaving()
        return is_told

    def _hear(self) -> None:
        from mpi4py import MPI

        status = MPI.Status()
        while True:
            try:
                if self._hearing is None:
                    self._hearing = self._comm.Irecv(self._heard, MPI.ANY_SOURCE, _TAG)
                if not self._hearing.Test(status):
                    return
            except MPI.Exception:
                # As in `tell`; the next step hears the hosts that are left.
                self._hearing = None
                return
            self._hearing = None
            self._take(State(*self._heard.tolist()), status.source)

    def _take(self, state: State, source: int) -> None:
        self._page.adopt(state)
        if state.is_leaving:
            self._staying.discard(state.host)
        if (dead := self._hosts.index(state.host)) != source and dead in self._peers:
            # Another rank speaks for its host: the first one hears nothing any more.
            self._peers.remove(dead)

    def _tell_one(self, peer: int, state: State) -> None:
        sent = self._under_way.get(peer)
        if sent is not None:
            if not sent.request.Test():
                return
            self._told[peer] = sent.state
            del self._under_way[peer]
        if self._told.get(peer) != state:
            words = np.array(state, np.int64)
            # Synchronous: it is done when the other side has received it.
            self._under_way[peer] = _Sent(self._comm.Issend(words, peer, _TAG), words, state)

    def _meet(self, meanwhile: Callable[[], None]) -> None:
        """Wait for the relays of all ranks, but not for ever, nor for a host that is gone."""
        from mpi4py import MPI

        deadline = time.monotonic() + _END_S
        with suppress(MPI.Exception):
            request = self._comm.Ibarrier()
            while not request.Test() and time.monotonic() < deadline:
                meanwhile()
                time.sleep(_POLL_S)


def check_threads(library: str) -> None:
    """Refuse an MPI that two threads may not call at once.

    Raises:
        UsageError: it is one.
    """
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UsageError(
            f"{library} gives no MPI_THREAD_MULTIPLE, which ranks on several hosts need: use an "
            "MPI that does, or start all ranks on one host"
        )
