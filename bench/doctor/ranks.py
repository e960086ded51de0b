"""The ranks that `epbench doctor` shows: how they meet, and how a lone doctor starts some.

`python -m bench.doctor.ranks FOLDER` is one rank that a doctor started. The first rank leaves the
rows of all in the folder; a rank that ends early leaves the reason.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.ranks.request import FAILURE, REQUEST, Failure, Request
from bench.ranks.supervisor import Supervisor
from bench.records.store import write_atomic
from bench.timing import Timing
from comms.errors import RuntimeFailure, TimeoutFailure, UsageError, error_of
from comms.mpi.control import start_time
from comms.mpi.launched import launched

if TYPE_CHECKING:
    from comms.mpi.launcher import Launcher

_ROWS, _SAID = "rows.json", "said.txt"
#: How long the launcher may take to end its ranks before it is killed.
_END_S = 3.0
_MOST_SAID = 300


class Row(msgspec.Struct, frozen=True):
    """One rank.

    Attributes:
        host: number of its host.
        cores: those that it may run on.
        num_host_cores: cores of its host.
    """

    rank: int
    local_rank: int
    host: int
    pid: int
    cores: list[int]
    num_host_cores: int


def meet(supervisor: Supervisor) -> list[Row] | None:
    """Join the other ranks, leave them again and return who they are, None but on the first.

    Collective. No page is shared, so that ranks may be on several hosts.

    Raises:
        UsageError: the launcher is not the one of the library that mpi4py uses.
        RuntimeFailure: MPI cannot start.
    """
    from comms.mpi.ranks import cores, join, leave

    supervisor.watch("MPI's start")
    ranks = join(launched())
    supervisor.watch("the meeting of all ranks")
    row = Row(
        rank=ranks.rank,
        local_rank=ranks.local_rank,
        host=ranks.host,
        pid=os.getpid(),
        cores=cores(),
        num_host_cores=os.cpu_count() or 1,
    )
    rows = ranks.comm.gather(row)
    supervisor.watch("MPI's end")
    leave()
    return rows


def start_ranks(launcher: Launcher, num_ranks: int, timeout_s: float) -> list[Row]:
    """Start ranks, wait for their end and return who they were.

    Args:
        launcher: what starts them.
        num_ranks: how many.
        timeout_s: when to give up.

    Raises:
        UsageError: the ranks do not find each other.
        RuntimeFailure: the launcher or MPI failed.
        TimeoutFailure: the ranks have not ended in time.
    """
    with tempfile.TemporaryDirectory(prefix="epbench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        own = os.getpid()
        request = Request([], Timing(timeout_s=timeout_s), own, start_time(own))
        (folder / REQUEST).write_bytes(msgspec.json.encode(request))
        with (folder / _SAID).open("wb") as said:
            # A session of its own: Ctrl-C comes to this process alone, which then ends the ranks.
            process = subprocess.Popen(
                launcher.command(num_ranks, [sys.executable, "-m", "bench.doctor.ranks", name]),
                env=launcher.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutFailure(
                f"{num_ranks} ranks have not met and ended within {timeout_s:g} s: MPI cannot "
                "start them here, or so many take longer (--timeout)"
            ) from None
        finally:
            _end(process)
        rows = _read_rows(folder, launcher, code)
    if len(rows) != num_ranks:
        raise UsageError(
            f"{launcher.path} started {num_ranks} ranks, but the first one sees a world of "
            f"{len(rows)}: put the mpirun of the library that mpi4py uses first on the PATH"
        )
    return rows


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and, through it, the ranks, if they have not ended by themselves."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_rows(folder: Path, launcher: Launcher, code: int) -> list[Row]:
    if (folder / FAILURE).exists():
        failure = msgspec.json.decode((folder / FAILURE).read_bytes(), type=Failure)
        raise error_of(failure.exit_code, failure.sentence)
    if code == 0 and (folder / _ROWS).exists():
        return msgspec.json.decode((folder / _ROWS).read_bytes(), type=list[Row])
    text = (folder / _SAID).read_text(errors="replace")
    said = " ".join(word for word in text.split() if word.strip("-"))
    raise RuntimeFailure(
        f"{launcher.path.name} ended with {code} before all ranks had met: "
        f"{said[-_MOST_SAID:] or 'it said nothing'}"
    )


def main(folder: Path) -> int:
    """Be one rank that a doctor started and return the exit code."""
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)

    def tell(exit_code: int, sentence: str) -> None:
        write_atomic(folder / FAILURE, msgspec.json.encode(Failure(exit_code, sentence)))

    supervisor = Supervisor(
        timeout_s=request.timing.timeout_s, tell=tell, parent=(request.parent, request.parent_start)
    )

    def work() -> int:
        rows = meet(supervisor)
        if rows is not None:
            write_atomic(folder / _ROWS, msgspec.json.encode(rows))
        return 0

    return supervisor.run(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
