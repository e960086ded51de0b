"""One rank of a job that `epbench run` started: `python -m bench.ranks FOLDER`."""

import os
import sys
from pathlib import Path
from typing import IO

import msgspec

from bench.cases import CaseSpec
from bench.ranks.rank import run_rank
from bench.ranks.request import NEWS, REQUEST, News, read_request, supervisor_of
from bench.records.record import Case, Rank
from bench.running import say
from comms.errors import RuntimeFailure, UsageError


class _NewsSink:
    """Tells the parent."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def begin(self, spec: CaseSpec) -> None:
        """Say nothing: the parent knows the order."""

    def update(self, stage: str, fraction: float) -> None:
        """Tell the stage."""
        self._tell(News(stage=stage, fraction=fraction))

    def end(self, spec: CaseSpec, cases: list[Case]) -> None:
        """Tell the cases."""
        self._tell(News(cases=cases))

    def tell_ranks(self, ranks: list[Rank], library: str) -> None:
        """Tell who the ranks are."""
        self._tell(News(ranks=ranks, library=library))

    def _tell(self, news: News) -> None:
        try:
            self._file.write(msgspec.json.encode(news) + b"\n")
            self._file.flush()
        except OSError as error:
            raise RuntimeFailure(f"cannot tell results to the parent: {error.strerror}") from error


def main(folder: Path) -> int:
    """Run as one rank and return the exit code."""
    if not (folder / REQUEST).exists():
        # It cannot be told as other ends are, but the parent repeats what launchers say.
        say(
            f"{folder} is not on this host: epbench starts ranks on its own host only; for several "
            "let the launcher start epbench (srun or mpirun, then epbench run)"
        )
        return UsageError.exit_code
    request = read_request(folder)
    supervisor = supervisor_of(folder, request)

    def work() -> int:
        # A launcher may start ranks elsewhere.
        os.chdir(request.folder)
        specs = request.specs()
        with (folder / NEWS).open("ab") as file:
            sink = _NewsSink(file)

            def open_sink(ranks: list[Rank], library: str) -> _NewsSink:
                sink.tell_ranks(ranks, library)
                return sink

            return run_rank(supervisor, specs, request.timing, open_sink, lambda _: 0)

    return supervisor.run(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
