"""What a lone process and the ranks that it starts tell each other, and in which files."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import Grid
from bench.ranks.supervisor import Supervisor
from bench.records.files import write_atomic
from bench.records.record import Case, Rank
from bench.timing import Timing
from bench.tuning.apply import with_tuned
from bench.tuning.tuned_file import Tuned
from comms.mpi.control import start_time

REQUEST, NEWS, FAILURE = "request.json", "news.jsonl", "failure.json"


class Request(msgspec.Struct, frozen=True):
    """What ranks shall run: the specs of these grids that need ranks, in order.

    Attributes:
        parent: process that wants the results.
        parent_start: when it started, which tells it from a later process of the same number.
        folder: where paths of the grids begin that are relative.
        tuned: knobs that the specs take, if any.
    """

    grids: list[Grid]
    timing: Timing
    parent: int
    parent_start: int
    folder: str = msgspec.field(default_factory=os.getcwd)
    tuned: Tuned | None = None

    def specs(self) -> list[CaseSpec]:
        """Return the specs that ranks run, in order."""
        specs = expand(self.grids)
        if self.tuned is not None:
            specs = with_tuned(specs, self.tuned, "--tuned")
        return [spec for spec in specs if spec.device != "sim"]


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that the first rank tells: who the ranks are, a stage, or the cases of a spec."""

    ranks: list[Rank] = []
    library: str = ""
    stage: str = ""
    fraction: float = 0.0
    cases: list[Case] = []


class Failure(msgspec.Struct, frozen=True):
    """Why the job ended early."""

    exit_code: int
    sentence: str


def is_alone(specs: Sequence[CaseSpec]) -> bool:
    """Whether one process runs all these specs, on one GPU, and so needs no MPI."""
    return all(spec.device == "cuda" and spec.num_processes == 1 for spec in specs)


def read_request(folder: Path) -> Request:
    """Return what the ranks of a folder shall run."""
    return msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)


def supervisor_of(folder: Path, request: Request) -> Supervisor:
    """Return what watches over a rank for a parent: it tells it the end, and ends with it."""

    def tell(exit_code: int, sentence: str) -> None:
        if start_time(request.parent) != request.parent_start:
            shutil.rmtree(folder, ignore_errors=True)
            return
        # A parent that finds no reason says how the launcher ended.
        with suppress(OSError):
            write_atomic(folder / FAILURE, msgspec.json.encode(Failure(exit_code, sentence)))

    return Supervisor(
        timeout_s=request.timing.timeout_s,
        tell=tell,
        parent=(request.parent, request.parent_start),
    )
