"""Run files on disk: rewritten whole and atomically after each case.

A reader never sees half a file; what a failed write leaves is the version before it.
"""

import errno
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.records.environment import environment, machine_id, tool
from bench.records.files import probe, why, write_target
from bench.records.record import Case, Config, Rank, Run, decode_run, encode_run
from comms.errors import RuntimeFailure, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def new_run(devices: Sequence[str], argv: list[str], config: Config) -> Run:
    """Return the header of a run that starts now, without cases.

    Args:
        devices: devices of its cases.
        argv: command line, beginning with the program's name and not with its path.
        config: the resolved request.
    """
    return Run(
        tool=tool(),
        run_id=str(uuid.uuid4()),
        machine_id=machine_id(devices),
        start_time=_now(),
        argv=argv,
        config=config,
        environment=environment(),
    )


def run_path(run: Run, results: Path) -> Path:
    """Return `results/<machine_id>/<UTC time>_<sha8 or nogit>_<run_id8>.json`."""
    started = datetime.fromisoformat(run.start_time).astimezone(UTC)
    sha = (run.tool.git_sha or "nogit")[:8]
    name = f"{started:%Y%m%dT%H%M%SZ}_{sha}_{run.run_id[:8]}.json"
    return results / run.machine_id / name


class RunStore:
    """Keeps one run in a file under the results folder, and in a second file where asked.

    Attributes:
        run: the run as it will be written next.
        path: the file under the results folder.
        num_kept: cases that are in `path` on disk.
    """

    def __init__(self, run: Run, results: Path, json: Path | None = None) -> None:
        """Prepare the files without writing them.

        Args:
            run: header of the run.
            results: folder of all results, made where it is missing.
            json: second file. A device or a pipe is written once, at the end.

        Raises:
            UsageError: a file cannot be written there.
        """
        self.run = run
        self.path = run_path(run, results)
        self.num_kept = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            probe(self.path)
        except OSError as error:
            raise UsageError(
                f"cannot write results under {results}: {why(error)}; choose another --results"
            ) from error
        self._targets = [self.path]
        if json is not None:
            try:
                probe(json)
            except OSError as error:
                raise UsageError(
                    f"cannot write --json {json}: {why(error)}; choose a file in a writable folder"
                ) from error
            self._targets.append(json)

    def set_ranks(self, ranks: list[Rank], mpi: str) -> None:
        """Note the processes of the run and their MPI library, to be written with the next case."""
        self.run.ranks = ranks
        self.run.environment = msgspec.structs.replace(self.run.environment, mpi=mpi or None)

    def add(self, cases: Iterable[Case]) -> None:
        """Append cases and rewrite the files.

        Raises:
            RuntimeFailure: the disk is full; the files keep the cases before.
        """
        self.run.cases.extend(cases)
        self._write(last=False)

    def finish(self, *, complete: bool) -> None:
        """Stamp the end of the run and write every target for the last time."""
        self.run.end_time = _now()
        self.run.complete = complete
        self._write(last=True)

    def _write(self, *, last: bool) -> None:
        data = encode_run(self.run)
        failures: list[tuple[Path, OSError]] = []
        for path in self._targets:
            try:
                write_target(path, data, last=last)
            except OSError as error:
                failures.append((path, error))
            else:
                if path == self.path:
                    self.num_kept = len(self.run.cases)
        if failures:
            path, cause = failures[0]
            what = "disk full" if cause.errno in _FULL else "write failed"
            raise RuntimeFailure(
                f"{what} at {path} ({why(cause)}): {self.num_kept} of {len(self.run.cases)} cases "
                f"are kept in {self.path}; make room and run again"
            )


def read_run(path: Path) -> Run:
    """Read a run file.

    Raises:
        UsageError: it cannot be read or is not a run file.
    """
    try:
        return decode_run(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a run file of epbench: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
