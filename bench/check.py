"""Compares what a device left in memory with the oracle, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comms.memory import POISON
from kernels.reference import Dispatched, RoutingIndex

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How many rows were wrong.

    Attributes:
        num_wrong: rows with a wrong byte, wrong entries of `recv_counts`, guard rows written, and
            writes after the kernel returned.
        num_checked: rows expected.
        first: one sentence about the first thing wrong, None if nothing is.
    """

    num_wrong: int = 0
    num_checked: int = 0
    first: str | None = None

    def __add__(self, other: "CheckResult") -> "CheckResult":
        """Return both results as one; its sentence is the left one's if that has any."""
        return CheckResult(
            self.num_wrong + other.num_wrong,
            self.num_checked + other.num_checked,
            other.first if self.first is None else self.first,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Sources:
    """Names the rows of one output: int32 `(num_rows,)` each."""

    output: str
    source_rank: npt.NDArray[np.int32]
    source_token: npt.NDArray[np.int32]

    def name(self, row: int) -> str:
        return f"(source rank {self.source_rank[row]}, token {self.source_token[row]})"


def check_dispatch(
    rank: int,
    outputs: Dispatched,
    expected: Dispatched,
    *,
    index: RoutingIndex,
    num_late: int = 0,
) -> CheckResult:
    """Check what dispatch left on one rank.

    Args:
        rank: the destination.
        outputs: what the device left; rows after the expected ones are guard rows and must still be
            poison.
        expected: what `kernels.reference.dispatch_to` gives for the rank.
        index: the routing, which names the source of a row.
        num_late: writes that arrived after the kernel returned.

    Raises:
        ValueError: an output of another width or type than expected.
    """
    sources = _Sources(f"dispatch to rank {rank}", *index.recv_index(rank))
    return (
        _check_late(num_late, sources)
        + _check_rows(_row_parts(outputs), _row_parts(expected), sources)
        + _check_counts(outputs.recv_counts, expected.recv_counts, sources)
    )


def check_combine(rank: int, out: Rows, expected: Rows, *, num_late: int = 0) -> CheckResult:
    """Check what combine left on one rank.

    Args:
        rank: the source of the tokens.
        out: uint8 `(num_tokens or more, stride_bytes)`; rows after the expected ones are guard rows
            and must still be poison.
        expected: what `kernels.reference.combine_to` gives for the rank.
        num_late: writes that arrived after the kernel returned.

    Raises:
        ValueError: an output of another width or type than expected.
    """
    tokens = np.arange(len(expected), dtype=np.int32)
    sources = _Sources(f"combine to rank {rank}", np.full_like(tokens, rank), tokens)
    return _check_late(num_late, sources) + _check_rows({"out": out}, {"out": expected}, sources)


def _row_parts(outputs: Dispatched) -> dict[str, Rows]:
    return {
        "recv_x": outputs.recv_x,
        "recv_topk_idx": outputs.recv_topk_idx,
        "recv_topk_weights": outputs.recv_topk_weights,
    }


def _check_rows(
    found: Mapping[str, Rows], expected: Mapping[str, Rows], sources: _Sources
) -> CheckResult:
    num_rows = len(sources.source_rank)
    wrong = np.zeros(max(num_rows, *(len(part) for part in found.values())), bool)
    for part, want in expected.items():
        have = found[part]
        if have.shape[1:] != want.shape[1:] or have.dtype != want.dtype:
            raise ValueError(
                f"{part} of {sources.output} must be {want.dtype} rows of {want.shape[1:]}, got "
                f"{have.dtype} rows of {have.shape[1:]}"
            )
        wrong[len(have) : num_rows] = True
        num_common = min(len(have), num_rows)
        if not np.array_equal(_bits(have[:num_common]), _bits(want[:num_common])):
            differs = _bits(have[:num_common]) != _bits(want[:num_common])
            wrong[:num_common] |= differs.any(axis=1)
        written = (_bits(have[num_rows:]) != _poison(have.dtype)).any(axis=1)
        wrong[num_rows : len(have)] |= written
    num_wrong = int(np.count_nonzero(wrong))
    if num_wrong == 0:
        return CheckResult(0, num_rows)
    first = _describe_row(int(np.argmax(wrong)), found, expected, sources)
    return CheckResult(num_wrong, num_rows, first)


def _describe_row(
    row: int, found: Mapping[str, Rows], expected: Mapping[str, Rows], sources: _Sources
) -> str:
    is_guard = row >= len(sources.source_rank)
    wanted = "poison after the last row" if is_guard else sources.name(row)
    start = f"{sources.output}, row {row}: expected {wanted}"
    for part, all_want in expected.items():
        if row >= len(found[part]):
            if is_guard:
                continue
            return f"{start}, but {part} ends after {len(found[part])} rows"
        have = found[part][row]
        want = np.full_like(_bits(have), _poison(have.dtype)) if is_guard else all_want[row]
        want = want.view(have.dtype)
        differs = np.flatnonzero(_bits(have) != _bits(want))
        if len(differs):
            what = _describe_bytes(have, all_want, sources) if have.dtype == np.uint8 else ""
            if not is_guard and (_bits(have) == _poison(have.dtype)).all():
                what = "poison: never written; "
            place = int(differs[0])
            unit = "byte " if have.dtype == np.uint8 else "element "
            return (
                f"{start}, found {what}{part} {unit}{place} is {_show(have[place])} instead of "
                f"{_show(want[place])}"
            )
    raise AssertionError(f"row {row} of {sources.output} is not wrong")


def _describe_bytes(have: Rows, expected: Rows, sources: _Sources) -> str:
    same = np.flatnonzero((expected == have).all(axis=1))
    return f"row of {sources.name(int(same[0]))}; " if len(same) else ""


def _check_counts(found: Rows, expected: Rows, sources: _Sources) -> CheckResult:
    if found.shape != expected.shape:
        raise ValueError(
            f"recv_counts of {sources.output} must be {expected.shape}, got {found.shape}"
        )
    wrong = np.argwhere(found != expected)
    if len(wrong) == 0:
        return CheckResult()
    source_rank, column = (int(i) for i in wrong[0])
    return CheckResult(
        len(wrong),
        0,
        f"{sources.output}: recv_counts[{source_rank}, {column}] is {found[source_rank, column]} "
        f"instead of {expected[source_rank, column]}",
    )


def _check_late(num_late: int, sources: _Sources) -> CheckResult:
    if num_late == 0:
        return CheckResult()
    writes = "write" if num_late == 1 else "writes"
    return CheckResult(
        num_late, 0, f"{sources.output}: {num_late} {writes} arrived after the kernel returned"
    )


def _bits(rows: Rows) -> Rows:
    return rows.view(f"u{rows.dtype.itemsize}")


def _poison(dtype: np.dtype[Any]) -> np.unsignedinteger[Any]:
    word: np.unsignedinteger[Any] = np.full(dtype.itemsize, POISON, np.uint8).view(
        f"u{dtype.itemsize}"
    )[0]
    return word


def _show(value: np.generic) -> str:
    if isinstance(value, np.uint8):
        return f"0x{int(value):02x}"
    if isinstance(value, np.floating):
        return f"{value} (0x{value.tobytes()[::-1].hex()})"
    return str(value)
