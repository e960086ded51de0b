"""The words that end kernels."""

import numpy as np
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_ranks import run_ranks

from comms.cuda.abort import REGION, AbortWords
from comms.cuda.cards import choose_cards, use_card
from comms.cuda.windows import IpcWindows, VirtualWindows
from comms.errors import RuntimeFailure
from comms.memory import Layout
from comms.mpi.ranks import Ranks

LAYOUT = Layout({"x": 64, REGION: 8})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Eight GPUs."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return machine


def test_one_rank_ends_all_that_it_reaches(machine: FakeMachine) -> None:
    def work(ranks: Ranks) -> tuple[int, int]:
        use_card(choose_cards(ranks)[ranks.rank])
        windows = IpcWindows(LAYOUT, ranks)
        words = AbortWords(windows, ranks.world_size)
        ranks.comm.Barrier()
        if ranks.rank == 1:
            words.end()
        ranks.comm.Barrier()
        ended = int(windows.read(ranks.rank, REGION, np.int64)[0])
        ranks.comm.Barrier()
        words.clear()
        cleared = int(windows.read(ranks.rank, REGION, np.int64)[0])
        words.close()
        words.close()
        windows.close()
        return ended, cleared

    machine.visible = {3: [5]}
    assert run_ranks(4, work, hosts=[0, 0, 0, 1]) == [(1, 0)] * 3 + [(0, 0)]
    assert machine.left() == []


def test_all_ranks_of_a_process(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 3)
    words = AbortWords(windows, 3)
    words.end()
    assert [int(windows.read(rank, REGION, np.int64)[0]) for rank in range(3)] == [1, 1, 1]
    words.clear()
    assert [int(windows.read(rank, REGION, np.int64)[0]) for rank in range(3)] == [0, 0, 0]


def test_while_kernels_run_only_copies_from_pinned_memory_are_made(machine: FakeMachine) -> None:
    words = AbortWords(VirtualWindows(LAYOUT, 2), 2)
    machine.calls.clear()
    words.end()
    assert [name for name, _ in machine.calls] == ["setDevice", "memcpyAsync", "memcpyAsync"]


def test_what_cannot_be_made_leaves_nothing(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    machine.faults["hostAlloc", 0] = 2
    with pytest.raises(RuntimeFailure, match="the words that end kernels cannot be made"):
        AbortWords(windows, 1)
    assert ("streamDestroy", 0) in machine.calls
