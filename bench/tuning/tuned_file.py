"""The file that tuning leaves and that `epbench run --tuned` takes; one JSON file, versioned.

It is rewritten whole after each kernel, so it is valid at any moment. Every key carries its unit;
a reader ignores keys that it does not know.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.records import files
from bench.records.environment import tool
from bench.records.files import why
from bench.records.record import Form, Op, Tool
from comms.errors import RuntimeFailure, UsageError

SCHEMA = "epbench-tuned"
SCHEMA_VERSION = "1.0.0"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What was tuned: the axes of a case but those that tuned knobs shall hold over.

    Attributes:
        sm_copy: which end of the range of the SM's copy rate was used.
        source: the file that the kernel is from, as it was asked for, null for a built-in one.
        impl: what the kernel is made of.
    """

    kernel: str
    variant: str
    form: Form
    device: str
    fabric: str
    cross_rail: str
    sm_copy: str
    nodes: int
    ranks_per_node: int
    preset: str
    num_tokens: int
    hidden: int
    num_experts: int
    num_topk: int
    dispatch_dtype: str
    combine_dtype: str
    routing: str
    masked_ratio: float
    num_sms: int
    skew_us: float
    prefix: int | None
    source: str | None = None
    impl: str = "numba"


class Dropped(msgspec.Struct, frozen=True):
    """A setting that was not taken because a run of it failed or was wrong."""

    knobs: dict[str, int]
    status: str
    reason: str


class Checked(msgspec.Struct, frozen=True):
    """Default and found knobs on seeds that the search did not see, times by seed."""

    seeds: list[int]
    default_us: list[float]
    found_us: list[float]

    @property
    def ratio(self) -> float:
        """Time of the default / time of what was found, of the sums over seeds."""
        return sum(self.default_us) / sum(self.found_us)

    @property
    def holds(self) -> bool:
        """Whether what was found is faster on every seed."""
        pairs = zip(self.default_us, self.found_us, strict=True)
        return all(found < default for default, found in pairs)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs of one kernel at one point.

    Attributes:
        default: values of all knobs where nobody turns them.
        found: values of all knobs that were the fastest.
        default_us: times of the default by seed of the search.
        found_us: times of what was found, likewise.
        num_runs: runs of the search.
        num_refused: settings that the kernel cannot run.
        complete: whether the search ended by itself, not by its budget and not interrupted.
        dropped: settings that failed or were wrong.
        check: null where tuning was interrupted before it.
    """

    point: Point
    op: Op
    default: dict[str, int]
    found: dict[str, int]
    default_us: list[float]
    found_us: list[float]
    num_runs: int
    num_refused: int
    complete: bool
    dropped: list[Dropped]
    check: Checked | None = None

    @property
    def taken(self) -> dict[str, int]:
        """Values that runs take: those found where their gain was checked and held, or defaults."""
        return self.found if self.check is not None and self.check.holds else self.default


class Skipped(msgspec.Struct, frozen=True):
    """A point that could not be tuned, with the reason."""

    point: Point
    reason: str


class Tuned(msgspec.Struct, kw_only=True):
    """One run of `epbench tune`.

    Attributes:
        start_time: ISO 8601 with offset, `end_time` likewise and null until the end.
        complete: False while tuning goes on and for ever if it was interrupted.
    """

    schema: str = SCHEMA
    schema_version: str = SCHEMA_VERSION
    tool: Tool = msgspec.field(default_factory=tool)
    start_time: str
    end_time: str | None = None
    argv: list[str]
    op: Op
    seeds: list[int]
    check_seeds: list[int]
    complete: bool = False
    entries: list[Entry] = []
    skipped: list[Skipped] = []


def probe(path: Path) -> None:
    """Make the folder of a file where it is missing, and find out whether it can be written there.

    Raises:
        UsageError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.probe(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {why(error)}; choose another --out") from error


def write_tuned(path: Path, tuned: Tuned, *, last: bool = True) -> None:
    """Write a file of tuned knobs in one step, see `probe`.

    Args:
        path: the file; a device or a pipe is written once, at the end.
        tuned: its content.
        last: whether this is the end.

    Raises:
        RuntimeFailure: it cannot be written.
    """
    try:
        files.write_target(path, files.encode(tuned), last=last)
    except OSError as error:
        sentence = f"cannot write {path}: {why(error)}; make room and tune again"
        raise RuntimeFailure(sentence) from error


def read_tuned(path: Path) -> Tuned:
    """Read a file of tuned knobs.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        return files.decode(path.read_bytes(), Tuned, SCHEMA, SCHEMA_VERSION)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a file of epbench tune: {error}") from error
