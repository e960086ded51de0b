"""The ranks of a job: MPI started and checked against its launcher."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.errors import RuntimeFailure, UsageError
from comms.mpi.launched import Launched

if TYPE_CHECKING:
    from types import ModuleType

    from mpi4py.MPI import Intracomm

_OPEN_MPI = "Open MPI"
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks of a world.

    Attributes:
        comm: communicator of the world.
        rank: this process.
        world_size: ranks.
        local_rank: this process among those of its host.
        local_size: ranks of this host.
        host: number of this process's host.
        num_hosts: hosts.
        library: MPI's name and version.
    """

    comm: Intracomm
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: int
    num_hosts: int
    library: str

    def first(self, num_ranks: int) -> Ranks | None:
        """Return the world of the first ranks, None where this one is not among them.

        Collective: all ranks of this world must call it.
        """
        from mpi4py.MPI import Intracomm

        comm = Intracomm(self.comm.Split(0 if self.rank < num_ranks else 1, self.rank))
        if self.rank >= num_ranks:
            comm.Free()
            return None
        return _describe(comm, self.library)


def join(started: Launched | None) -> Ranks:
    """Start MPI and return this process among its ranks.

    Args:
        started: what the launcher's environment says.

    Raises:
        UsageError: the launcher is not the one of the library that mpi4py uses, so that its ranks
            cannot find each other.
        RuntimeFailure: there is no MPI library, or it cannot start.
    """
    mpi = _load()
    library = library_name()
    if started is not None:
        _refuse_mismatch(started, library)
    if code := _initialize(mpi):
        raise RuntimeFailure(f"{library} cannot start: error {code}")
    world = mpi.COMM_WORLD
    world.Set_errhandler(mpi.ERRORS_RETURN)
    if started is not None and world.size != started.size:
        raise UsageError(
            f"{started.launcher} started {started.size} ranks ({started.variable}={started.size}), "
            f"but {library} sees a world of {world.size}: {_remedy(library)}"
        )
    return _describe(world, library)


def library_name() -> str:
    """Return name and version of the MPI library that mpi4py uses.

    Raises:
        RuntimeFailure: there is none.
    """
    text = str(_load().Get_library_version()).replace("\x00", "")
    first = " ".join(text.splitlines()[0].split(",")[0].split())
    return first.replace("MPICH Version:", "MPICH")


def leave() -> None:
    """End MPI; collective, and without the interpreter's lock as its start."""
    ctypes.CDLL(_load().__file__).MPI_Finalize()


def _load() -> ModuleType:
    try:
        import mpi4py

        # What the launcher says is checked before the library starts: some end the process there.
        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise RuntimeFailure(
            f"mpi4py finds no MPI library ({cause}): install one (pip install 'epbench[mpi]', or "
            "load the cluster's module)"
        ) from error
    return MPI


def _initialize(mpi: ModuleType) -> int:
    """Start MPI and return its error code.

    Ranks may wait for each other here. mpi4py's own call would keep the interpreter's lock
    meanwhile, and with it the thread that watches.
    """
    library = ctypes.CDLL(mpi.__file__)
    provided = ctypes.c_int()
    wanted = ctypes.c_int(mpi.THREAD_MULTIPLE)
    return int(library.MPI_Init_thread(None, None, wanted, ctypes.byref(provided)))


def _refuse_mismatch(started: Launched, library: str) -> None:
    if started.variable == "OMPI_COMM_WORLD_SIZE" and _OPEN_MPI not in library:
        wrong = True
    else:
        wrong = started.variable == "PMI_SIZE" and _OPEN_MPI in library
    if wrong:
        raise UsageError(
            f"{started.launcher} started {started.size} ranks ({started.variable}="
            f"{started.size}), but mpi4py uses {library}, which cannot join them: "
            f"{_remedy(library)}"
        )


def _remedy(library: str) -> str:
    return (
        f"start with the mpirun of that installation of {library.split(' v')[0]}, or install an "
        "mpi4py that uses this launcher's library"
    )


def _describe(comm: Intracomm, library: str) -> Ranks:
    from mpi4py import MPI

    near = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    local_rank, local_size = near.rank, near.size
    near_first = min(near.allgather(comm.rank))
    near.Free()
    # Hosts are numbered in the order of their first ranks.
    firsts = sorted(set(comm.allgather(near_first)))
    return Ranks(
        comm=comm,
        rank=comm.rank,
        world_size=comm.size,
        local_rank=local_rank,
        local_size=local_size,
        host=firsts.index(near_first),
        num_hosts=len(firsts),
        library=library,
    )


def meet_asleep(ranks: Ranks) -> None:
    """Wait for all ranks without keeping a core from those that still work; collective."""
    request = ranks.comm.Ibarrier()
    while not request.Test():
        time.sleep(_POLL_S)


def cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))
