"""What a lone process and the ranks that it starts tell each other, and in which files."""

import msgspec

from bench.records.record import Case, Rank
from bench.suites import Grid
from bench.timing import Timing

REQUEST, NEWS, FAILURE = "request.json", "news.jsonl", "failure.json"


class Request(msgspec.Struct, frozen=True):
    """What ranks shall run: the specs of these grids that need ranks, in order.

    Attributes:
        parent: process that wants the results.
        parent_start: when it started, which tells it from a later process of the same number.
    """

    grids: list[Grid]
    timing: Timing
    parent: int
    parent_start: int


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
