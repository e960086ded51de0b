"""Which library carries a protocol's host launches on GPUs, and why it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.collectives import Wanted
from comms.cuda.collectives import NcclCollectives
from comms.cuda.streams import StreamMemory, plain_wait
from comms.mpi.collectives import MpiCollectives
from comms.mpi.cuda_aware import refuse_host_only

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from comms.cuda.nccl import Communicators


def refuse_library(wanted: Wanted, *, ranks_per_card: int, mpi: str) -> str | None:
    """Return why a library cannot carry what a protocol asks of it, or None.

    Args:
        wanted: what is asked.
        ranks_per_card: ranks of each process, which share its GPU.
        mpi: name and version of the MPI library.
    """
    if ranks_per_card > 1:
        name = "MPI, which has one rank a process" if wanted.name == "mpi" else "NCCL"
        why = "" if wanted.name == "mpi" else ", which refuses two ranks on one GPU"
        return f"needs {name}{why}: run one rank a GPU"
    return refuse_host_only(mpi) if wanted.name == "mpi" else None


def mpi_collectives(comm: Intracomm, stream: int) -> MpiCollectives:
    """Return MPI on this rank's GPU; it waits for the stream before each call.

    Args:
        comm: communicator of the world that nobody else uses.
        stream: of the kernels before and after.
    """
    return MpiCollectives(comm, StreamMemory(stream, plain_wait))


def nccl_collectives(
    communicators: Communicators, wanted: Wanted, *, rank: int, stream: int
) -> NcclCollectives:
    """Return NCCL with one budget on this rank's GPU; collective the first time.

    Raises:
        UsageError: NCCL cannot keep to what is wanted.
        RuntimeFailure: NCCL failed, on this rank or on another.
        TimeoutFailure: NCCL did not come to an end.
    """
    assert wanted.name == "own", wanted
    communicator = communicators.of("zero" if wanted.zero_ctas else wanted.max_ctas)
    return NcclCollectives(communicator, StreamMemory(stream, communicators.wait), rank)
