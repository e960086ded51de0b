"""When a warp's rows passed its SM and it waited for nothing else."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from comms.sim.record import COPY_PIPE
from comms.sim.timeline import Records, Timeline

_Stretches = tuple[list[int], list[int]]


def passing(timeline: Timeline) -> Records:
    """Return the passes through the SMs' copy pipes, less what their warps waited for meanwhile.

    A reduction's rows pass the SM while its warp waits for the rows that it reads.
    """
    waits: dict[tuple[int, ...], _Stretches] = defaultdict(lambda: ([], []))
    for *warp, begin, end in _rows(timeline.waits):
        begins, ends = waits[tuple(warp)]
        begins.append(begin)
        ends.append(end)
    passes = timeline.passes[timeline.passes["code"] == COPY_PIPE]
    pieces = [
        (index, *piece)
        for index, (*warp, begin, end) in enumerate(_rows(passes))
        for piece in _outside(begin, end, waits[tuple(warp)])
    ]
    index, first, last = np.array(pieces, np.int64).reshape(-1, 3).T
    alone: Records = passes[index]
    alone["begin"], alone["end"] = first, last
    return alone


def _rows(records: Records) -> Iterator[tuple[int, ...]]:
    fields = ("launch", "rank", "sm", "warp", "begin", "end")
    return zip(*(records[name].tolist() for name in fields), strict=True)


def _outside(begin: int, end: int, waits: _Stretches) -> Iterator[tuple[int, int]]:
    """Yield what of a time lies outside of stretches that follow each other."""
    begins, ends = waits
    for place in range(bisect_right(ends, begin), bisect_left(begins, end)):
        if begins[place] > begin:
            yield begin, begins[place]
        begin = max(begin, ends[place])
    if begin < end:
        yield begin, end
