"""The ranks that `epbench doctor` shows: how they meet, and how a lone doctor starts some.

`python -m bench.doctor.ranks FOLDER` is one rank that a doctor started, `bench.doctor.cuda_ranks`
one that looks for GPUs, too. The first rank leaves the rows of all in the folder; a rank that ends
early leaves the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.ranks.request import Request, read_request, supervisor_of
from bench.ranks.started import Started
from bench.ranks.supervisor import Supervisor
from bench.records.files import write_atomic
from bench.timing import Timing
from comms.errors import TimeoutFailure, UsageError
from comms.mpi.control import start_time
from comms.mpi.launched import launched

if TYPE_CHECKING:
    from comms.mpi.launcher import Launcher

_ROWS = "rows.json"


class Row(msgspec.Struct, frozen=True):
    """One rank.

    Attributes:
        host: number of its host.
        cores: those that it may run on.
        num_host_cores: cores of its host.
        gpus: UUIDs of the GPUs that it sees, where they are looked for.
        why_no_gpus: why it sees none.
    """

    rank: int
    local_rank: int
    host: int
    pid: int
    cores: list[int]
    num_host_cores: int
    gpus: list[str] = []
    why_no_gpus: str = ""


def meet(supervisor: Supervisor, device: str | None = None) -> list[Row] | None:
    """Join the other ranks, leave them again and return who they are, None but on the first.

    Collective. No page is shared, so that ranks may be on several hosts.

    Args:
        supervisor: watches.
        device: `"cuda"` to look for GPUs.

    Raises:
        UsageError: the launcher is not the one of the library that mpi4py uses.
        RuntimeFailure: MPI cannot start.
    """
    from comms.mpi.ranks import cores, join, leave

    supervisor.watch("MPI's start")
    ranks = join(launched())
    gpus: list[str] = []
    why_no_gpus = ""
    if device == "cuda":
        from bench.doctor.cuda import gpus_of_this_rank

        supervisor.watch("the look for GPUs")
        gpus, why_no_gpus = gpus_of_this_rank()
    supervisor.watch("the meeting of all ranks")
    row = Row(
        rank=ranks.rank,
        local_rank=ranks.local_rank,
        host=ranks.host,
        pid=os.getpid(),
        cores=cores(),
        num_host_cores=os.cpu_count() or 1,
        gpus=gpus,
        why_no_gpus=why_no_gpus,
    )
    rows = ranks.comm.gather(row)
    supervisor.watch("MPI's end")
    leave()
    return rows


def start_ranks(
    launcher: Launcher, num_ranks: int, timeout_s: float, device: str | None = None
) -> list[Row]:
    """Start ranks, wait for their end and return who they were.

    Args:
        launcher: what starts them.
        num_ranks: how many.
        timeout_s: when to give up.
        device: `"cuda"` to look for GPUs.

    Raises:
        UsageError: the ranks do not find each other.
        RuntimeFailure: the launcher or MPI failed.
        TimeoutFailure: the ranks have not ended in time.
    """
    own = os.getpid()
    module = "bench.doctor.cuda_ranks" if device == "cuda" else "bench.doctor.ranks"
    request = Request([], Timing(timeout_s=timeout_s), own, start_time(own))
    started = Started(launcher, num_ranks, module, request)
    try:
        code = started.wait(timeout_s)
        if code or not (started.folder / _ROWS).exists():
            raise started.error()
        rows = msgspec.json.decode((started.folder / _ROWS).read_bytes(), type=list[Row])
    except subprocess.TimeoutExpired:
        raise TimeoutFailure(
            f"{num_ranks} ranks have not met and ended within {timeout_s:g} s: MPI cannot start "
            "them here, or so many take longer (--timeout)"
        ) from None
    finally:
        started.stop()
        started.close()
    if len(rows) != num_ranks:
        raise UsageError(
            f"{launcher.path} started {num_ranks} ranks, but the first one sees a world of "
            f"{len(rows)}: put the mpirun of the library that mpi4py uses first on the PATH"
        )
    return rows


def main(folder: Path, device: str | None = None) -> int:
    """Be one rank that a doctor started and return the exit code."""
    request = read_request(folder)
    supervisor = supervisor_of(folder, request)

    def work() -> int:
        rows = meet(supervisor, device)
        if rows is not None:
            write_atomic(folder / _ROWS, msgspec.json.encode(rows))
        return 0

    return supervisor.run(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
