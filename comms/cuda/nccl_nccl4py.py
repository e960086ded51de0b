"""NCCL by nccl4py.

Data calls take addresses: nccl4py's own methods look at an array in each call, which costs 10 us,
and a group has two calls a peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comms.cuda.errors import INSTALL, explained, nccl_words
from comms.cuda.nccl_library import SUM, UINT8, Budget, Link
from comms.errors import RuntimeFailure

_SUCCESS, _IN_PROGRESS = 0, 7
_TELLS_TEAMS, _COPIES_OVER_NETWORK = 22907, 23006
#: What nccl4py's calls look like where they are known here.
KNOWN = {
    "send": "send(intptr_t sendbuff, size_t count, int datatype, int peer, comm, intptr_t stream)",
    "recv": "recv(intptr_t recvbuff, size_t count, int datatype, int peer, comm, intptr_t stream)",
    "allto_all": "allto_all(intptr_t sendbuff, intptr_t recvbuff, size_t count, int datatype, "
    "comm, intptr_t stream)",
    "all_gather": "all_gather(intptr_t sendbuff, intptr_t recvbuff, size_t sendcount, int "
    "datatype, comm, intptr_t stream)",
    "reduce_scatter": "reduce_scatter(intptr_t sendbuff, intptr_t recvbuff, size_t recvcount, int "
    "datatype, int op, comm, intptr_t stream)",
}


class Nccl4py:
    """NCCL by nccl4py."""

    def __init__(self) -> None:
        """Load package and library.

        Raises:
            RuntimeFailure: one is missing, or the package is another than known.
        """
        with explained("NCCL cannot be loaded by nccl4py"):
            import nccl.bindings.nccl as calls
            import nccl.core as core

            self._calls: Any = calls
            self.core: Any = core
            self.version = int(calls.get_version())
        for name, known in KNOWN.items():
            found = (getattr(calls, name).__doc__ or "").partition("\n")[0]
            if found != known:
                raise RuntimeFailure(
                    f"nccl4py {core.__version__} calls {name} as {found!r}, not as {known!r}: "
                    f"install a version that is known, {INSTALL}"
                )

    def unique_id(self) -> bytes:
        """Return a new name of a communicator."""
        return bytes(self.core.get_unique_id().as_bytes)

    def connect(self, name: bytes, world_size: int, rank: int, budget: Budget) -> Link:
        """Make a communicator; collective."""
        core = self.core
        # Blocking, as by default: else each group is carried out by a thread that is made for it.
        if budget == "zero":
            config = core.NCCLConfig(cta_policy=core.CTAPolicy.ZERO)
        elif budget is None:
            config = core.NCCLConfig()
        else:
            config = core.NCCLConfig(min_ctas=budget, max_ctas=budget)
        made = core.Communicator.init(world_size, rank, core.UniqueId.from_bytes(name), config)
        return Nccl4pyLink(self._calls, core, made)

    def refuses(self, budget: Budget) -> str | None:
        """Return why it cannot keep to a budget, None where it can."""
        return None

    def group_start(self) -> None:
        """Begin calls that are carried out at once."""
        self.core.group_start()

    def group_end(self) -> None:
        """Carry them out."""
        self.core.group_end()

    def allocate(self, num_bytes: int) -> int:
        """Return the address of memory that can be a window."""
        return int(self._calls.mem_alloc(num_bytes))

    def free(self, address: int) -> None:
        """Free it."""
        self._calls.mem_free(address)


class Nccl4pyLink:
    """A communicator of nccl4py."""

    def __init__(self, calls: Any, core: Any, made: Any) -> None:  # noqa: ANN401
        self._calls = calls
        self._core = core
        self._made = made
        self._comm = calls.Comm(made.ptr)
        self._windows: dict[int, Any] = {}

    def send(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Send bytes."""
        self._calls.send(address, num_bytes, UINT8, peer, self._comm, stream)

    def recv(self, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Receive bytes."""
        self._calls.recv(address, num_bytes, UINT8, peer, self._comm, stream)

    def alltoall(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Exchange blocks of so many bytes."""
        self._calls.allto_all(send, recv, num_bytes, UINT8, self._comm, stream)

    def allgather(self, send: int, recv: int, num_bytes: int, stream: int) -> None:
        """Gather blocks of so many bytes."""
        self._calls.all_gather(send, recv, num_bytes, UINT8, self._comm, stream)

    def reduce_scatter(self, send: int, recv: int, count: int, dtype: int, stream: int) -> None:
        """Sum blocks of so many elements."""
        self._calls.reduce_scatter(send, recv, count, dtype, SUM, self._comm, stream)

    def register(self, address: int, num_bytes: int) -> list[int] | None:
        """Make memory a window, and return where each rank's is."""
        from cupy import ndarray, uint8
        from cupy.cuda import MemoryPointer, UnownedMemory, runtime

        memory = UnownedMemory(address, num_bytes, None, runtime.getDevice())
        array = ndarray((num_bytes,), uint8, memptr=MemoryPointer(memory, 0))
        window = self._made.register_window(array, self._core.WindowFlag.COLL_SYMMETRIC)
        if not window.is_valid:
            return None
        self._windows[address] = window
        peers: Sequence[int | None] = [
            address if peer == self._made.rank else window.get_peer_device_pointer(peer)
            for peer in range(self._made.nranks)
        ]
        return [peer or 0 for peer in peers]

    def unregister(self, address: int) -> None:
        """Undo it."""
        self._windows.pop(address).close()

    def copies(self) -> str | None:
        """Return why copy engines cannot carry out its collectives, None where they can."""
        made = self._made
        version = int(self._calls.get_version())
        if version < _TELLS_TEAMS:
            return "NCCL is older than 2.29.7, so that nobody can tell whether it does"
        if made.n_lsa_teams == 1:
            return None
        if version < _COPIES_OVER_NETWORK:
            return "not all ranks are linked by NVLink, and NCCL is older than 2.30.6"
        if not made.host_rma_support:
            return "not all ranks are linked by NVLink, and NCCL's RMA over the network is off"
        return None

    def error(self) -> str | None:
        """Return what has failed in the background."""
        result = int(self._made.get_async_error())
        if result in (_SUCCESS, _IN_PROGRESS):
            return None
        return f"{nccl_words(result)} ({self._made.get_last_error() or f'result {result}'})"

    def abort(self) -> None:
        """End all work that goes on, and the communicator."""
        # nccl4py's own would first unmap the windows, which kernels still use; NCCL does so when
        # what is on its streams has ended.
        self._calls.comm_abort(self._comm)

    def close(self) -> None:
        """Free the communicator."""
        self._made.destroy()
