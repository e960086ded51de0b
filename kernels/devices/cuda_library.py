"""The library that a protocol's host launches call on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comms.collectives import RowSplits
from comms.cuda.kept_nccl import KeptNccl
from comms.cuda.libraries import mpi_collectives, nccl_collectives, refuse_library
from comms.cuda.windows import Memory
from comms.errors import RuntimeFailure, UsageError
from comms.failed import DoesNotFit
from kernels.protocol import HostCall, HostLaunch, Protocol
from kernels.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from comms.mpi.ranks import Ranks


def refuse_for(
    protocol: Protocol, shape: Shape, memory: Memory, *, ranks_per_card: int, mpi: str
) -> str | None:
    """Return why a protocol's library cannot be had, or None.

    Args:
        protocol: what calls it.
        shape: sizes.
        memory: whose windows ranks map.
        ranks_per_card: ranks of each process.
        mpi: name and version of the MPI library.
    """
    if protocol.library is None:
        return None
    wanted = protocol.library(shape)
    if wanted.zero_ctas and memory != "nccl":
        return "copy engines serve only windows that NCCL has allocated: use --memory nccl"
    return refuse_library(wanted, ranks_per_card=ranks_per_card, mpi=mpi)


class CardLibrary:
    """A library, and what it keeps of how rows were split."""

    def __init__(
        self, protocol: Protocol, shape: Shape, ranks: Ranks, stream: int, nccl: KeptNccl
    ) -> None:
        """Start it; collective.

        Raises:
            DoesNotFit: it cannot keep to what the protocol asks; in the same words on all ranks.
            RuntimeFailure: it fails.
        """
        # A communicator of its own: what a library sends never meets the harness's.
        self._comm = ranks.comm.Dup()
        self._nccl = nccl
        self._shape = shape
        self._kept: dict[str, RowSplits] = {}
        self._settings = protocol.settings(shape)
        self._calls: Any = None
        self._uses_nccl = False
        if protocol.library is None:
            return
        wanted = protocol.library(shape)
        if wanted.name == "mpi":
            self._calls = mpi_collectives(self._comm, stream)
            return
        self._uses_nccl = True
        try:
            self._calls = nccl_collectives(nccl.get(), wanted, rank=ranks.rank, stream=stream)
        except UsageError as error:
            raise DoesNotFit(str(error)) from error

    def call(self, step: HostLaunch, view: Callable[[str, npt.DTypeLike], Any]) -> None:
        """Make a call.

        Args:
            step: the call.
            view: region of this rank, by the name that the protocol calls it.

        Raises:
            RuntimeFailure: the library fails.
        """
        try:
            step.call(
                HostCall(self._comm, self._shape, self._settings, view, self._calls, self._kept)
            )
        except Exception as error:
            # The type is not imported: a world of one process has no MPI.
            if type(error).__module__.partition(".")[0] != "mpi4py":
                raise
            raise RuntimeFailure(f"MPI failed in {step.name}: {error}") from error

    def check(self, *, hosts_meet: bool) -> None:
        """Look for what NCCL finds on its own threads: a kernel of it may never end by that.

        Args:
            hosts_meet: whether NCCL is used besides, where hosts meet.

        Raises:
            RuntimeFailure: NCCL has failed.
        """
        if self._uses_nccl or hosts_meet:
            self._nccl.check()

    def abort(self) -> None:
        """End what NCCL does: a peer may never answer it."""
        if self._calls is not None:
            self._nccl.abort()

    def close(self) -> None:
        """Give back what is this protocol's own."""
        close = getattr(self._calls, "close", None)
        if close is not None:
            close()
        self._comm.Free()
