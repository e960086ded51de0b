"""Where ranks of several hosts meet by NCCL: nobody goes on before all have come."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_nccl import install_nccl
from fake_ranks import run_ranks

from comms.cuda.cards import choose_cards, use_card
from comms.cuda.meeting import HostsMeeting
from comms.cuda.nccl import Communicators
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure
from comms.mpi.ranks import Ranks

STREAM = 5


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Eight GPUs, and NCCL between them."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    install_nccl(monkeypatch, machine)
    return machine


def _run(work: Callable[[Ranks, Communicators], Any], limit_s: float = 10.0) -> list[Any]:
    def begin(ranks: Ranks) -> object:
        use_card(choose_cards(ranks)[ranks.rank])
        return work(ranks, Communicators(ranks, limit_s=limit_s))

    return run_ranks(3, begin)


def test_a_stream_goes_on_when_all_ranks_have_come(machine: FakeMachine) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> tuple[int, int]:
        meeting = HostsMeeting(communicators, ranks, STREAM)
        ranks.comm.Barrier()
        time.sleep(0.1 * ranks.rank)
        came = time.monotonic_ns()
        meeting.put()
        communicators.wait(STREAM, "the meeting")
        went = time.monotonic_ns()
        meeting.close()
        meeting.close()
        communicators.close()
        return came, went

    found = _run(work)
    assert max(came for came, _ in found) < min(went for _, went in found)
    assert machine.left() == []


def test_a_rank_that_does_not_come_is_told(machine: FakeMachine) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        meeting = HostsMeeting(communicators, ranks, STREAM)
        if ranks.rank == 2:
            return
        meeting.put()
        communicators.wait(STREAM, "the meeting")

    found = _run(work, limit_s=0.5)
    assert [type(one) for one in found] == [TimeoutFailure, TimeoutFailure, type(None)]
    assert "another rank has not come to it" in str(found[0])


def test_memory_that_one_rank_cannot_get_ends_all(machine: FakeMachine) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        communicators.of(None)
        ranks.comm.Barrier()
        machine.faults["malloc", 1] = 2
        ranks.comm.Barrier()
        HostsMeeting(communicators, ranks, STREAM)

    found = _run(work)
    assert all(type(error) is RuntimeFailure for error in found), found
    (sentence,) = {str(error) for error in found}
    assert sentence.startswith("memory of a meeting cannot be had")
    assert machine.left() == []


@pytest.mark.parametrize("hangs", [False, True])
def test_nccl_is_ended_before_the_memory_of_a_meeting_that_failed_is_freed(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    plain_put, plain_close = HostsMeeting.put, HostsMeeting.close
    aborted: dict[int, bool] = {}

    def put(self: HostsMeeting) -> None:
        if self._ranks.rank == 2:
            time.sleep(1.5 if hangs else 0)
            raise RuntimeFailure("no call")
        plain_put(self)

    def work(ranks: Ranks, communicators: Communicators) -> None:
        def close(self: HostsMeeting) -> None:
            aborted[self._ranks.rank] = made[self._ranks.rank].is_aborted
            plain_close(self)

        made[ranks.rank] = communicators
        monkeypatch.setattr(HostsMeeting, "close", close)
        HostsMeeting(communicators, ranks, STREAM)

    made: dict[int, Communicators] = {}
    monkeypatch.setattr(HostsMeeting, "put", put)
    found = _run(work, limit_s=0.5)
    assert all(isinstance(one, EpbenchError) for one in found), found
    assert aborted == dict.fromkeys(range(3), True)
    assert machine.left() == []
