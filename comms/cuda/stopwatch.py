"""When launches of a stream began and ended, by events of the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comms.cuda.errors import explained
from comms.errors import RuntimeFailure

if TYPE_CHECKING:
    from cupy.cuda import Stream

_READY, _NOT_READY = 0, 600
#: Between two looks at a stream.
_LOOK_S = 20e-6
_NS_PER_MS = 1e6


class Stopwatch:
    """Events around launches, which every run records anew."""

    def __init__(self, num_launches: int) -> None:
        """Make the events.

        Raises:
            RuntimeFailure: CUDA gives none.
        """
        with explained("events cannot be made"):
            from cupy.cuda import Event

            self._events: list[Any] = [Event() for _ in range(num_launches + 1)]

    def mark(self, number: int, stream: Stream, *, in_graph: bool) -> None:
        """Record the end of the launch before, the first time the begin.

        Args:
            number: how many launches are before it.
            stream: their stream.
            in_graph: whether a graph is made, which shall record it each time that it runs: CuPy
                knows only events that order what is captured.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        event = self._events[number]
        with explained("an event cannot be recorded"):
            if not in_graph:
                event.record(stream)
                return
            from cuda.bindings import driver

            flag = int(driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
            (result,) = driver.cuEventRecordWithFlags(event.ptr, stream.ptr, flag)
            if int(result):
                raise RuntimeFailure(f"a graph cannot record an event: {result.name}")

    def phases_ns(self) -> npt.NDArray[np.float64]:
        """Return the time of each launch of the last run, which has ended."""
        with explained("events cannot be read"):
            from cupy.cuda import get_elapsed_time

            pairs = zip(self._events, self._events[1:], strict=False)
            return np.array([get_elapsed_time(*pair) for pair in pairs]) * _NS_PER_MS

    def total_ns(self) -> float:
        """Return the time of all launches of the last run."""
        with explained("events cannot be read"):
            from cupy.cuda import get_elapsed_time

            return float(get_elapsed_time(self._events[0], self._events[-1]) * _NS_PER_MS)


def settle(stream: int, look: Callable[[], None]) -> None:
    """Wait for a stream.

    Args:
        stream: its handle.
        look: called again and again meanwhile.

    Raises:
        RuntimeFailure: a kernel or a copy failed.
    """
    with explained("a kernel"):
        from cupy.cuda import runtime

        while (status := runtime.streamQuery(stream)) == _NOT_READY:
            look()
            time.sleep(_LOOK_S)
        if status != _READY:
            raise runtime.CUDARuntimeError(status)
