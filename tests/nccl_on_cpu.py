"""`nccl` and `two_hop/staged` on device `cpu`: what calls NCCL is theirs, NCCL itself is a fake.

The fake takes addresses as NCCL does and moves the bytes between MPI ranks. It is as strict as NCCL
is, and stricter where NCCL would hang: messages that nobody receives end the run.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.collectives import Rows
from comms.cuda.collectives import NcclCollectives
from comms.cuda.communicator import Part
from comms.cuda.streams import StreamMemory
from comms.mpi.collectives import MpiCollectives
from kernels.floats import from_bf16, to_bf16
from kernels.mpi import PROTOCOLS as MPI_PROTOCOLS
from kernels.nccl import PROTOCOLS as NCCL_PROTOCOLS
from kernels.protocol import Form, HostCall, HostLaunch, KernelLaunch, Op, Protocol
from kernels.two_hop.staged import STAGED

STREAM = 3


class CardArray(np.ndarray[Any, Any]):
    """An array that tells its address as CuPy's do."""

    @property
    def data(self) -> Any:  # noqa: ANN401
        """Where it begins."""
        return SimpleNamespace(ptr=self.ctypes.data)


def _memory(address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), np.uint8)


class FakeRuntime(ModuleType):
    """As much of `cupy.cuda.runtime` as streams need; all work ends at once."""

    hostAllocPortable, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 1, 1, 2, 3
    eventDisableTiming = 2

    def __init__(self) -> None:
        super().__init__("cupy.cuda.runtime")
        self._pinned: dict[int, npt.NDArray[np.uint8]] = {}

    def hostAlloc(self, size: int, flags: int) -> int:
        memory = np.full(size, 0xAB, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def freeHost(self, ptr: int) -> None:
        del self._pinned[ptr]

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        assert stream == STREAM
        assert size > 0
        ctypes.memmove(dst, src, size)

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        assert stream == STREAM
        ctypes.memset(ptr, value, size)

    def streamQuery(self, stream: int) -> int:
        assert stream == STREAM
        return 0

    def eventCreateWithFlags(self, flags: int) -> int:
        return 77

    def eventRecord(self, event: int, stream: int) -> None:
        assert (event, stream) == (77, STREAM)

    def eventQuery(self, event: int) -> int:
        assert event == 77
        return 0

    def eventDestroy(self, event: int) -> None:
        assert event == 77


def install_runtime() -> None:
    """Let `cupy.cuda.runtime` be the fake in this process."""
    cupy, cupy_cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy_cuda.__dict__["runtime"] = FakeRuntime()
    cupy.__dict__["cuda"] = cupy_cuda
    sys.modules |= {"cupy": cupy, "cupy.cuda": cupy_cuda}


class FakeCommunicator:
    """`comms.cuda.nccl.Communicator` over MPI."""

    def __init__(self, comm: Any) -> None:  # noqa: ANN401
        self._comm = comm

    def exchange(self, parts: Sequence[Part], stream: int) -> None:
        """Exchange messages, those between two ranks in order."""
        assert stream == STREAM
        assert parts, "a group of nothing"
        requests = []
        for part in parts:
            assert part.peer != self._comm.rank, "own rows are copied"
            assert part.send_bytes or part.recv_bytes, "a message of nothing"
            if part.recv_bytes:
                into = _memory(part.recv_addr, part.recv_bytes)
                requests.append((self._comm.Irecv(into, part.peer), part.recv_bytes))
        for part in parts:
            if part.send_bytes:
                sent = _memory(part.send_addr, part.send_bytes)
                requests.append((self._comm.Isend(sent, part.peer), 0))
        from mpi4py import MPI

        for request, num_bytes in requests:
            status = MPI.Status()
            request.Wait(status)
            if num_bytes:
                assert status.Get_count(MPI.BYTE) == num_bytes, "a shorter message than expected"

    def alltoall(self, send_addr: int, recv_addr: int, bytes_per_rank: int, stream: int) -> None:
        """Exchange blocks."""
        assert stream == STREAM
        num_bytes = self._comm.size * bytes_per_rank
        self._comm.Alltoall(_memory(send_addr, num_bytes), _memory(recv_addr, num_bytes))

    def allgather(self, send_addr: int, recv_addr: int, num_bytes: int, stream: int) -> None:
        """Gather blocks."""
        assert stream == STREAM
        into = _memory(recv_addr, self._comm.size * num_bytes)
        self._comm.Allgather(_memory(send_addr, num_bytes), into)

    def reduce_scatter(
        self, send_addr: int, recv_addr: int, num_elements: int, dtype: str, stream: int
    ) -> None:
        """Add as a ring does: the next rank's block first, rounded after each rank."""
        assert (stream, dtype) == (STREAM, "bfloat16")
        world = self._comm.size
        sent = _memory(send_addr, 2 * world * num_elements)
        blocks = np.empty((world, 2 * num_elements), np.uint8)
        self._comm.Alltoall(sent, blocks)
        values = from_bf16(blocks.view(np.uint16))
        total = values[(self._comm.rank + 1) % world]
        for step in range(2, world + 1):
            total = from_bf16(to_bf16(total + values[(self._comm.rank + step) % world]))
        _memory(recv_addr, 2 * num_elements)[:] = to_bf16(total).view(np.uint8)


class _CudaArray:
    """Host memory that says it is a GPU's, by CUDA's array interface and nothing else."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.nbytes = array.nbytes
        self.__cuda_array_interface__ = {
            "shape": (array.nbytes,),
            "typestr": "|u1",
            "data": (array.ctypes.data, False),
            "version": 3,
        }


class _MpiOnCards(MpiCollectives):
    """MPI that is given what it takes for GPUs' memory."""

    def exchange(self, rows: Sequence[Rows], splits: Any) -> None:  # noqa: ANN401
        cards = [Rows(_CudaArray(row[0]), _CudaArray(row[1]), row[2]) for row in rows]
        super().exchange(cards, splits)


#: By what a device keeps of its runs: that, for as long as it lives, and its library.
_libraries: dict[int, tuple[Any, Any]] = {}


def _library(library: str, host: HostCall) -> Any:  # noqa: ANN401
    """Return the library of a device, which lives as long as it does."""
    if id(host.kept) not in _libraries:
        install_runtime()
        memory = StreamMemory(STREAM, _never)
        made: Any = _MpiOnCards(host.comm, memory)
        if library == "nccl":
            communicator: Any = FakeCommunicator(host.comm)
            made = NcclCollectives(communicator, memory, host.comm.rank)
        _libraries[id(host.kept)] = host.kept, made
    return _libraries[id(host.kept)][1]


def _call(call: Any, library: str, host: HostCall) -> None:  # noqa: ANN401
    def view(name: str, dtype: npt.DTypeLike) -> Any:  # noqa: ANN401
        return host.view(name, dtype).view(CardArray)

    call(replace(host, library=_library(library, host), view=view))


def _never(stream: int, what: str) -> None:
    raise AssertionError(f"all work ends at once, {what} too")


def on_cpu(protocol: Protocol, variant: str, library: str = "nccl", **fields: Any) -> Protocol:  # noqa: ANN401
    """Return a protocol whose host launches call the fake, on device `cpu`."""

    def launches(op: Op, form: Form) -> tuple[KernelLaunch | HostLaunch, ...]:
        return tuple(
            replace(each, call=partial(_call, each.call, library))
            if isinstance(each, HostLaunch)
            else each
            for each in protocol.launches(op, form)
        )

    named = {"kernel": "nccl_on_cpu", "variant": variant, "devices": ("cpu",)}
    return replace(protocol, launches=launches, **named, **fields)


_BY_VARIANT = {protocol.variant: protocol for protocol in NCCL_PROTOCOLS}
PROTOCOLS = (
    *(on_cpu(protocol, variant) for variant, protocol in _BY_VARIANT.items()),
    on_cpu(STAGED, "staged"),
    on_cpu(MPI_PROTOCOLS[0], "mpi_dedup", "mpi"),
    # Rows of any numbers show the library's own order and roundings.
    on_cpu(_BY_VARIANT["reduce_scatter"], "any_numbers", whole_numbers=False),
)
