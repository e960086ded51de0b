"""Stands in for nccl4py, and lets both packages that call NCCL be fakes."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_cupy_nccl import cupy_nccl
from fake_gpus import CUDARuntimeError, FakeMachine
from fake_nccl_world import FakeLink, FakeNccl
from fake_ranks import this_process

from comms.cuda import nccl_nccl4py

_RESULTS = {1: "UnhandledCudaError", 4: "InvalidArgument", 5: "InvalidUsage", 6: "RemoteError"}


class NCCLError(Exception):
    """nccl4py's error."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"{_RESULTS.get(status, 'InternalError')} ({status}): it failed")


NCCLError.__module__ = "nccl.bindings.nccl"


class FakeCalls(ModuleType):
    """`nccl.bindings.nccl`."""

    NCCLError = NCCLError

    def __init__(self, nccl: FakeNccl) -> None:
        super().__init__("nccl.bindings.nccl")
        self._nccl = nccl
        self._links: dict[int, FakeLink] = {}
        for name, known in nccl_nccl4py.KNOWN.items():
            # A wrapper, so that a test can give one another signature.
            setattr(self, name, _documented(getattr(self, f"_{name}"), known))

    def Comm(self, handle: int = 0) -> FakeLink:  # noqa: N802
        return self._links[handle]

    def get_version(self) -> int:
        version = self._nccl.version
        return version.get(this_process().rank, version[-1])

    def mem_alloc(self, size: int) -> int:
        runtime = sys.modules["cupy.cuda.runtime"]
        try:
            return self._nccl.machine.allocate(size, runtime._card())
        except CUDARuntimeError as error:
            raise NCCLError(1) from error

    def mem_free(self, ptr: int) -> None:
        self._nccl.machine.release(ptr, is_owner=True)

    def comm_abort(self, comm: FakeLink) -> None:
        # NCCL itself unmaps the windows that are left, when its kernels have ended.
        self._nccl.ended.append(("abort", comm.rank))
        for window in list(comm.open):
            window.close()

    def _send(self, sendbuff, count, datatype, peer, comm, stream) -> None:  # noqa: ANN001
        comm.send(sendbuff, count, peer)

    def _recv(self, recvbuff, count, datatype, peer, comm, stream) -> None:  # noqa: ANN001
        comm.recv(recvbuff, count, peer, stream)

    def _allto_all(self, sendbuff, recvbuff, count, datatype, comm, stream) -> None:  # noqa: ANN001
        comm.blocks(sendbuff, recvbuff, count, stream, same=False)

    def _all_gather(self, sendbuff, recvbuff, count, datatype, comm, stream) -> None:  # noqa: ANN001
        comm.blocks(sendbuff, recvbuff, count, stream, same=True)

    def _reduce_scatter(self, *args: Any) -> None:  # noqa: ANN401
        self._nccl.groups.append((this_process().rank, [f"reduce_scatter {args[2:5]}"]))


def _documented(call: Any, line: str) -> Any:  # noqa: ANN401
    def wrapped(*args: Any) -> Any:  # noqa: ANN401
        return call(*args)

    wrapped.__doc__ = line
    return wrapped


class FakeWindow:
    """nccl4py's handle of a window."""

    def __init__(self, nccl: FakeNccl, link: FakeLink) -> None:
        self._nccl, self._link = nccl, link
        self.is_valid = link.rank not in nccl.no_window
        self._mapped: dict[int, int] = {}
        link.open.append(self)

    def get_peer_device_pointer(self, peer: int, offset: int = 0) -> int | None:
        if (self._link.rank, peer) in self._nccl.unreachable:
            return None
        block = self._link.shared.windows[peer]
        if peer not in self._mapped:
            self._mapped[peer] = self._nccl.machine.map(
                block.num_bytes, block.fd, block.card, is_owner=False
            )
        return self._mapped[peer] + offset

    def close(self) -> None:
        if self not in self._link.open:
            return
        self._link.open.remove(self)
        self._nccl.ended.append(("unmap", self._link.rank))
        for address in self._mapped.values():
            self._nccl.machine.release(address, is_owner=False)


class Communicator:
    """`nccl.core.Communicator`."""

    nccl: FakeNccl
    calls: FakeCalls

    @classmethod
    def init(
        cls,
        nranks: int,
        rank: int,
        unique_id: SimpleNamespace,
        config: SimpleNamespace | None = None,
    ) -> "Communicator":
        cls.nccl.configs.append((rank, dict(vars(config)) if config is not None else {}))
        made = cls()
        made.link = cls.nccl.join(unique_id.as_bytes, nranks, rank)
        cls.calls._links[made.link.handle] = made.link
        return made

    link: FakeLink

    @property
    def ptr(self) -> int:
        return self.link.handle

    @property
    def rank(self) -> int:
        return self.link.rank

    @property
    def nranks(self) -> int:
        return self.link.size

    @property
    def n_lsa_teams(self) -> int:
        return self.nccl.teams

    @property
    def host_rma_support(self) -> bool:
        return False

    def register_window(self, buffer: Any, flags: Any = None) -> FakeWindow:  # noqa: ANN401
        assert flags == 1, "a window that others map is a symmetric one"
        block = self.nccl.machine.blocks[self.link.rank, buffer.memptr.ptr]
        sizes = self.link.shared.meeting.exchange(self.link.rank, block.num_bytes)
        if len(set(sizes)) > 1:
            raise NCCLError(4)
        self.link.shared.windows[self.link.rank] = block
        self.link.shared.meeting.exchange(self.link.rank, None)
        return FakeWindow(self.nccl, self.link)

    def get_async_error(self) -> int:
        return self.nccl.errors.get(self.link.rank, 0)

    def get_last_error(self) -> str:
        return "socket closed"

    def abort(self) -> None:
        self.close_all_resources()
        self.calls.comm_abort(self.link)

    def close_all_resources(self) -> None:
        for window in list(self.link.open):
            window.close()

    def destroy(self) -> None:
        self.close_all_resources()
        self.link.shared.meeting.exchange(self.link.rank, None)
        self.nccl.ended.append(("destroy", self.link.rank))


def install_nccl(patch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeNccl:
    """Let `nccl` and `cupy.cuda.nccl` be fakes."""
    nccl = FakeNccl(machine)
    calls = FakeCalls(nccl)
    names = iter(range(1000))

    def group_start() -> None:
        state = this_process().state
        state["depth"] = state.get("depth", 0) + 1

    def group_end(*, simulate: bool = False) -> None:
        state = this_process().state
        state["depth"] -= 1
        nccl.groups.append((this_process().rank, state.pop("group", [])))

    def unique_id(data: bytes) -> SimpleNamespace:
        return SimpleNamespace(as_bytes=data)

    core = ModuleType("nccl.core")
    core.__dict__.update(
        __version__="0.6.0",
        Communicator=type("Communicator", (Communicator,), {"nccl": nccl, "calls": calls}),
        NCCLConfig=lambda **fields: SimpleNamespace(**fields),
        CTAPolicy=SimpleNamespace(ZERO=2),
        WindowFlag=SimpleNamespace(COLL_SYMMETRIC=1),
        UniqueId=SimpleNamespace(from_bytes=unique_id),
        get_unique_id=lambda: unique_id(b"%128d" % next(names)),
        group_start=group_start,
        group_end=group_end,
    )
    bindings, package = ModuleType("nccl.bindings"), ModuleType("nccl")
    bindings.__dict__.update(nccl=calls)
    package.__dict__.update(core=core, bindings=bindings)
    modules = {"nccl": package, "nccl.core": core, "nccl.bindings": bindings}
    for name, module in {**modules, "nccl.bindings.nccl": calls}.items():
        patch.setitem(sys.modules, name, module)
    binding = cupy_nccl(nccl, group_start, group_end, lambda: b"%128d" % next(names))
    patch.setitem(sys.modules, "cupy.cuda.nccl", binding)
    patch.setattr(sys.modules["cupy.cuda"], "nccl", binding, raising=False)
    return nccl
