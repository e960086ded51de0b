"""Calls of libraries that may never return, because another rank does not answer them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from comms.errors import TimeoutFailure

T = TypeVar("T")


class _Call(Generic[T]):
    def __init__(self, call: Callable[[], T], device: int) -> None:
        self.result: T
        self.error: Exception | None = None
        self._call = call
        self._device = device

    def run(self) -> None:
        from cupy.cuda import runtime

        try:
            # Each thread has a current device of its own.
            runtime.setDevice(self._device)
            self.result = self._call()
        except Exception as error:  # noqa: BLE001
            self.error = error


def within(limit_s: float, doing: str, call: Callable[[], T]) -> T:
    """Make a call on a thread of its own, with this thread's GPU, and wait no longer than so.

    The thread stays inside a call that does not return: the process can only end then.

    Args:
        limit_s: seconds.
        doing: what is tried, for a message.
        call: must let go of the interpreter's lock while it waits.

    Raises:
        TimeoutFailure: the call has not returned in time.
    """
    from cupy.cuda import runtime

    made = _Call(call, runtime.getDevice())
    thread = threading.Thread(target=made.run, daemon=True, name=doing)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutFailure(
            f"{doing} has not ended within {limit_s:g} s: another rank does not answer, or the "
            "network between ranks does not work (NCCL_DEBUG=INFO tells)"
        )
    if made.error is not None:
        raise made.error
    return made.result
