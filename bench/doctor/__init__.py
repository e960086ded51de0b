"""`epbench doctor`: what epbench finds on this machine, and what to do where something is amiss.

A line for each finding: `ok`, `note` for what is not there or costs time, `bad` for what does not
work. Under a launcher the ranks meet first, then the first one prints.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from bench.doctor.machine import find_library, find_mpi, tell_machine
from bench.doctor.ranks import Row, meet, start_ranks
from bench.pages.doctor import Page, Say, tell_ranks
from bench.running import say as say_end
from comms.errors import EpbenchError, RuntimeFailure, UsageError
from comms.mpi.launched import Launched, launched

if TYPE_CHECKING:
    from comms.mpi.launcher import Launcher

#: How much longer than the first rank the others live where all end with an error.
_LINGER_S = 3.0


def examine(say: Say, num_ranks: int | None, timeout_s: float, device: str | None = None) -> int:
    """Print all findings and return 0.

    Ranks that a launcher started end their processes here if they do not all meet.

    Args:
        say: writes text.
        num_ranks: ranks to start and show, None for none.
        timeout_s: longest that ranks may take.
        device: `"cuda"` to look for GPUs and what they need, too.

    Raises:
        UsageError: something does not work, or ranks are to start ranks.
        RuntimeFailure: MPI cannot start.
        TimeoutFailure: the ranks did not end in time.
    """
    started = launched()
    if started is not None:
        if num_ranks is not None:
            raise UsageError(
                f"--ranks starts ranks, but {started.launcher} has started {started.size}: leave "
                "out --ranks, or start epbench alone"
            )
        return _examine_as_rank(say, started, timeout_s, device)
    page = Page(say)
    mpi = find_mpi(None, None)
    tell_machine(page, mpi, device)
    if device == "cuda":
        _tell_cuda(page)
    if num_ranks is not None:
        _start_and_tell(page, mpi.launcher, num_ranks, timeout_s, device)
    if page.bad:
        _refuse(UsageError, page)
    return 0


def _tell_cuda(page: Page) -> None:
    from bench.doctor.cuda import tell_cuda

    tell_cuda(page)


def _tell_ranks(page: Page, rows: list[Row], device: str | None) -> None:
    tell_ranks(page, rows)
    if device == "cuda":
        from bench.doctor.cuda import tell_cards

        tell_cards(page, rows)


def _start_and_tell(
    page: Page, launcher: Launcher | None, num_ranks: int, timeout_s: float, device: str | None
) -> None:
    if launcher is None:
        page.note("ranks", "none were started, for want of a launcher: see launcher")
        return
    try:
        rows = start_ranks(launcher, num_ranks, timeout_s, device)
    except (UsageError, RuntimeFailure) as error:
        page.fail("ranks", str(error))
        _refuse(type(error), page)
    _tell_ranks(page, rows, device)


def _examine_as_rank(say: Say, started: Launched, timeout_s: float, device: str | None) -> int:
    from bench.ranks.supervisor import Supervisor

    is_first = started.rank == 0

    def tell(exit_code: int, sentence: str) -> None:
        # Of what all ranks meet the first one speaks.
        if is_first or exit_code == EpbenchError.exit_code:
            say_end(sentence)

    limit_s = timeout_s if is_first else timeout_s + _LINGER_S
    supervisor = Supervisor(timeout_s=limit_s, tell=tell)

    def work() -> int:
        failure: EpbenchError | None = None
        rows: list[Row] | None = None
        if find_library()[0] is not None:
            try:
                rows = meet(supervisor, device)
            except (UsageError, RuntimeFailure) as error:
                failure = error
        if not is_first:
            return failure.exit_code if failure else 0
        # What follows asks no other rank, and has limits of its own.
        supervisor.rest()
        page = Page(say)
        tell_machine(page, find_mpi(started, failure), device)
        if device == "cuda":
            _tell_cuda(page)
        if rows is not None:
            _tell_ranks(page, rows, device)
        if page.bad:
            _refuse(type(failure or UsageError()), page)
        return 0

    exit_code = supervisor.run(work)
    if exit_code:
        _linger(exit_code)
    return exit_code


def _linger(exit_code: int) -> NoReturn:
    """End with a code, later than the first rank: some launchers end all ranks after such an end.

    Ranks that have not met cannot wait for each other.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(exit_code))
    time.sleep(_LINGER_S)
    os._exit(exit_code)


def _refuse(kind: type[EpbenchError], page: Page) -> NoReturn:
    topics = ", ".join(dict.fromkeys(page.bad))
    raise kind(f"not all is well with {topics}: the lines that begin with bad say what to do")
