"""A rank of two feigned hosts of two: `python hosts_rank.py FOLDER ORDER WHAT[:RANK,...]`.

Ranks are MPI's, the job and its page the product's own; hosts are numbers that this file gives, and
what a spec does is a step of the test. Each rank leaves its exit code in the folder.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.agreement import agreeing
from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import DEFAULTS
from bench.ranks import rank as job
from bench.ranks.supervisor import Supervisor
from bench.records.record import Case
from bench.timing import Timing
from comms.errors import RuntimeFailure, UsageError
from comms.mpi import ranks as mpi_ranks
from comms.mpi.ranks import Ranks

_NUM_TURNS = 3
#: Seconds that a step may take where no test lets it be late.
_LIMIT_S = 20.0
#: Longer than a message between hosts takes.
_FLIGHT_S = 0.3
_HOSTS = {"block": (0, 0, 1, 1), "cyclic": (0, 1, 0, 1)}


def _feign(patch: pytest.MonkeyPatch, order: str) -> None:
    plain = mpi_ranks._describe

    def describe(comm: Any, library: str) -> Ranks:  # noqa: ANN401
        hosts = _HOSTS[order][: comm.size]
        host = hosts[comm.rank]
        near = [rank for rank, other in enumerate(hosts) if other == host]
        return replace(
            plain(comm, library),
            local_rank=near.index(comm.rank),
            local_size=len(near),
            host=host,
            num_hosts=len(set(hosts)),
        )

    patch.setattr(mpi_ranks, "_describe", describe)


def _say(text: str) -> None:
    # One write, so that lines of ranks do not mix.
    os.write(1, f"{text}\n".encode())


def _abort(ranks: Ranks, supervisor: Supervisor) -> None:
    """Let a failure of the last rank's kernels end those of all, once and no longer."""
    control = supervisor.control
    assert control is not None
    word = ctypes.c_int64.from_address(control.abort_address)

    def work() -> None:
        with agreeing(ranks, control, supervisor.watch, lambda: None):
            assert word.value == 0
            ranks.comm.Barrier()
            if ranks.rank == ranks.world_size - 1:
                word.value = 1
                raise RuntimeFailure("a kernel failed")
            while not word.value:
                time.sleep(0.001)

    with pytest.raises(RuntimeFailure, match="a kernel failed"):
        work()
    time.sleep(_FLIGHT_S)
    assert word.value == 0
    assert control.generation() >= 1


def _fault(what: str, rank: int, others: list[int]) -> None:
    if what == "kill_of_all":
        # A launcher ends the ranks of a host before anybody there has heard why.
        for other in others:
            os.kill(other, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise UsageError(f"a fault of rank {rank}")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


class _Sink:
    def begin(self, spec: CaseSpec) -> None:
        """Say nothing."""

    def update(self, stage: str, fraction: float) -> None:
        """Say nothing."""

    def end(self, spec: CaseSpec, cases: list[Case]) -> None:
        """Say why cases were not run."""
        for reason in dict.fromkeys(case.reason for case in cases):
            _say(f"skipped: {reason}")


def main(folder: Path, order: str, what: str, faulty: list[int]) -> int:
    """Run as one rank and return the exit code."""
    patch = pytest.MonkeyPatch()
    _feign(patch, order)
    patch.setattr(job, "take_card", lambda _: None)
    leave = os._exit

    def leave_code(code: int) -> None:
        _keep(folder, code)
        leave(code)

    patch.setattr(os, "_exit", leave_code)
    turns = iter(range(1, _NUM_TURNS + 1))
    plain: Callable[..., list[Case]] = job._run

    def run(spec: CaseSpec, worlds: Any, supervisor: Supervisor, sink: Any) -> list[Case]:  # noqa: ANN401
        ranks = worlds.ranks[4]
        turn = next(turns)
        _say(f"begin {ranks.rank} {turn} {time.monotonic_ns()}")
        supervisor.watch(f"turn {turn}")
        if what == "abort":
            _abort(ranks, supervisor)
        elif turn == 2 and what not in ("good", "layout"):
            processes = ranks.comm.allgather(os.getpid())
            if ranks.rank in faulty:
                _fault(what, ranks.rank, [one for one in processes if one != os.getpid()])
            ranks.comm.Barrier()
        time.sleep(0.1)
        _say(f"end {ranks.rank} {turn} {time.monotonic_ns()}")
        return plain(spec, worlds, supervisor, sink) if what == "layout" else []

    patch.setattr(job, "_run", run)
    supervisor = Supervisor(timeout_s=1.0 if what == "sleep" else _LIMIT_S, tell=_tell)
    watch = supervisor.watch

    def watch_turns(stage: str, least_s: float = 0.0) -> None:
        # On a busy machine MPI alone takes longer to start than a turn may.
        watch(stage, least_s if stage.startswith("turn") else max(least_s, _LIMIT_S))

    patch.setattr(supervisor, "watch", watch_turns)
    nodes = (1,) if order == "block" else (2,)
    cards = DEFAULTS["cpu" if what == "cpu" else "cuda"]
    grid = {"nodes": nodes, "ranks_per_node": (4 // nodes[0],), "kernel": ("direct/push",)}
    (spec,) = expand([type(cards)(**{**_fields(cards), **grid, "num_sms": (8,)})])

    def work() -> int:
        specs = [spec] * _NUM_TURNS
        return job.run_rank(supervisor, specs, Timing(), lambda *_: _Sink(), lambda _: 0)

    code = supervisor.run(work)
    _keep(folder, code)
    return code


def _fields(struct: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _tell(exit_code: int, sentence: str) -> None:
    os.write(2, f"epbench: {sentence}\n".encode())


def _keep(folder: Path, code: int) -> None:
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
    (folder / rank).write_text(str(code))


if __name__ == "__main__":
    fault, _, numbers = sys.argv[3].partition(":")
    sys.exit(
        main(
            Path(sys.argv[1]),
            sys.argv[2],
            fault,
            [int(each) for each in numbers.split(",") if each],
        )
    )
