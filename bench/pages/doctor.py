"""The text of `epbench doctor`: a line for each finding, and a table of ranks."""

from collections.abc import Callable, Sequence
from itertools import groupby

from bench.doctor.ranks import Row

Say = Callable[[str], None]

_HEADER = ("# rank", "local_rank", "host", "pid", "cores", "bound-to")


class Page:
    """Lines, written as they are found.

    Attributes:
        bad: topics of what does not work.
    """

    def __init__(self, say: Say) -> None:
        self.bad: list[str] = []
        self._say = say

    def ok(self, topic: str, text: str) -> None:
        """Tell what is as it should be."""
        self._tell("ok", topic, text)

    def note(self, topic: str, text: str) -> None:
        """Tell what is not there or costs time, and what to do about it."""
        self._tell("note", topic, text)

    def fail(self, topic: str, text: str) -> None:
        """Tell what does not work, and what to do about it."""
        self.bad.append(topic)
        self._tell("bad", topic, text)

    def write(self, line: str) -> None:
        """Write a line that is no finding."""
        self._say(f"{line}\n")

    def _tell(self, status: str, topic: str, text: str) -> None:
        self.write(f"{status:<4}  {topic:<13}  {' '.join(text.split())}")


def tell_ranks(page: Page, rows: Sequence[Row]) -> None:
    """Tell who the ranks are, and what that means for times."""
    table = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        page.write(f"#{line[1:]}")
    hosts: dict[int, list[Row]] = {}
    for row in rows:
        hosts.setdefault(row.host, []).append(row)
    if len(hosts) > 1:
        page.note(
            "ranks",
            f"{len(rows)} on {len(hosts)} hosts: device cpu needs all on one, start them there "
            "(--nodes makes virtual nodes of its ranks); on device cuda hosts are nodes",
        )
    else:
        page.ok("ranks", f"{len(rows)} on one host have met")
    for ranks in hosts.values():
        num_cores = len({core for row in ranks for core in row.cores})
        if len(ranks) > num_cores:
            cores = f"{num_cores} core" if num_cores == 1 else f"{num_cores} cores"
            page.note(
                "ranks",
                f"{len(ranks)} on {cores} of a host: ranks share cores: times include waiting for "
                "them, start fewer",
            )
            break
    if all(len(row.cores) == 1 < row.num_host_cores for row in rows):
        page.note(
            "ranks",
            "each is bound to a single core, which its SMs share where num_sms > 1: start them "
            "unbound (mpirun --bind-to none)",
        )


def _cells(row: Row) -> tuple[str, ...]:
    bound = "none" if len(row.cores) == row.num_host_cores else _spans(row.cores)
    numbers = (row.rank, row.local_rank, row.host, row.pid, len(row.cores))
    return (*map(str, numbers), bound)


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as spans, for example `0-3,8`."""
    groups = groupby(enumerate(numbers), lambda item: item[1] - item[0])
    spans = [[number for _, number in group] for _, group in groups]
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
