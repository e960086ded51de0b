"""Stands in for CuPy's own binding of NCCL."""

from types import ModuleType
from typing import Any

from fake_nccl_world import FakeNccl


class NcclError(RuntimeError):
    """CuPy's error of NCCL."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"NCCL_ERROR_{status}: it failed")


NcclError.__module__ = "cupy_backends.cuda.libs.nccl"


def cupy_nccl(nccl: FakeNccl, start: Any, end: Any, unique_id: Any) -> ModuleType:  # noqa: ANN401
    class NcclCommunicator:
        def __init__(self, ndev: int, commId: bytes, rank: int) -> None:  # noqa: N803
            nccl.configs.append((rank, {}))
            self._link = nccl.join(commId, ndev, rank)

        def send(self, sendbuf, count, datatype, peer, stream) -> None:  # noqa: ANN001
            self._link.send(sendbuf, count, peer)

        def recv(self, recvbuf, count, datatype, peer, stream) -> None:  # noqa: ANN001
            self._link.recv(recvbuf, count, peer, stream)

        def allGather(self, sendbuf, recvbuf, count, datatype, stream) -> None:  # noqa: ANN001, N802
            self._link.blocks(sendbuf, recvbuf, count, stream, same=True)

        def check_async_error(self) -> None:
            if result := nccl.errors.get(self._link.rank, 0):
                raise NcclError(result)

        def abort(self) -> None:
            nccl.ended.append(("abort", self._link.rank))

        def destroy(self) -> None:
            nccl.ended.append(("destroy", self._link.rank))

    binding = ModuleType("cupy.cuda.nccl")
    binding.__dict__.update(
        available=True,
        get_version=lambda: nccl.version[-1],
        get_unique_id=unique_id,
        groupStart=start,
        groupEnd=end,
        NcclCommunicator=NcclCommunicator,
    )
    return binding
