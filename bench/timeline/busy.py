"""When something that does one thing at a time was busy: a port, a pipe, a warp that waits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Stretches of time in order, int64 `(n,)` picoseconds, and the bytes of each."""

    begin: Times
    end: Times
    num_bytes: Times


class Busy:
    """Intervals that follow each other without overlap."""

    def __init__(self, begin: Times, end: Times, num_bytes: Times) -> None:
        self.spans = Spans(begin, end, num_bytes)
        self._edges = np.stack([begin, end], axis=1).reshape(-1)
        durations = np.zeros((len(begin), 2), np.int64)
        durations[:, 1] = end - begin
        self._before = np.cumsum(durations)

    def until(self, time: int | Times) -> npt.NDArray[np.float64]:
        """Return the busy picoseconds before each time."""
        if not len(self._edges):
            return np.zeros(np.shape(time))
        found = np.interp(np.asarray(time), self._edges, self._before, left=0)
        return np.asarray(found, np.float64)

    def between(self, begin: int | Times, end: int | Times) -> npt.NDArray[np.float64]:
        """Return the busy picoseconds between times."""
        return self.until(end) - self.until(begin)

    def share(self, begin: int, end: int) -> float:
        """Return the part of the time from `begin` to `end` that is busy, 0 where that is none."""
        return float(self.between(begin, end)) / (end - begin) if end > begin else 0.0

    def bytes_between(self, begin: int, end: int) -> int:
        """Return the bytes of the intervals that begin between two times."""
        one = self.spans
        return int(one.num_bytes[(one.begin >= begin) & (one.begin < end)].sum())

    def stretches(self) -> Spans:
        """Return the intervals with those joined that touch."""
        begin, end, num_bytes = self.spans.begin, self.spans.end, self.spans.num_bytes
        is_first = np.ones(len(begin), bool)
        is_first[1:] = begin[1:] > end[:-1]
        firsts = np.flatnonzero(is_first)
        if not len(firsts):
            return self.spans
        lasts = np.append(firsts[1:] - 1, len(end) - 1)
        return Spans(begin[firsts], end[lasts], np.add.reduceat(num_bytes, firsts))

    @classmethod
    def of(cls, stretches: Sequence[tuple[int, int]]) -> "Busy":
        """Return what is busy in some stretches of time."""
        begin, end = np.array(stretches, np.int64).reshape(-1, 2).T
        return cls(begin, end, np.zeros(len(begin), np.int64))

    def gaps(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the idle stretches between two times, in order."""
        one = self.stretches()
        inside = (one.end > begin) & (one.begin < end)
        froms = np.append(begin, np.maximum(one.end[inside], begin))
        tos = np.append(np.minimum(one.begin[inside], end), end)
        return [(a, b) for a, b in zip(froms.tolist(), tos.tolist(), strict=True) if b > a]
