"""Windows in GPU memory: zeroed, mapped and freed in order; or refused by all ranks."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_nccl import install_nccl
from fake_nccl_world import FakeNccl
from fake_ranks import run_ranks

from comms.cuda.cards import choose_cards, use_card
from comms.cuda.memory import CardWindows
from comms.cuda.nccl import Communicators
from comms.cuda.windows import IpcWindows, Memory, NcclWindows, VirtualWindows, open_windows
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure
from comms.memory import Layout
from comms.mpi.launcher import find_launcher
from comms.mpi.ranks import Ranks, library_name

LAYOUT = Layout({"x": 1000, "flags": 64, "abort": 8})
ROOT = Path(__file__).parent.parent


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Eight GPUs."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return machine


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeNccl:
    """NCCL between them."""
    return install_nccl(monkeypatch, machine)


def _with_cards(work: Callable[[Ranks], object]) -> Callable[[Ranks], object]:
    def begin(ranks: Ranks) -> object:
        use_card(choose_cards(ranks)[ranks.rank])
        return work(ranks)

    return begin


def _one_sentence(found: list[object]) -> str:
    assert all(isinstance(error, EpbenchError) for error in found), found
    (sentence,) = {str(error) for error in found}
    return sentence


def _use(windows: CardWindows, ranks: Ranks) -> None:
    """Write to the own window, and see others' as they wrote them."""
    rank = ranks.rank
    layout = windows.layout
    assert all(not windows.read(rank, region.name).any() for region in layout)
    ranks.comm.Barrier()
    windows.write(rank, "flags", np.array([10 + rank, 20 + rank], np.int64), at=16)
    ranks.comm.Barrier()
    for peer in range(ranks.world_size):
        assert windows.word(peer, layout["flags"].offset + 24) == 20 + peer
        assert windows.read(peer, "flags", np.int64, 16, 8).tolist() == [10 + peer]
    assert len({windows.base(peer) for peer in range(ranks.world_size)}) == ranks.world_size
    ranks.comm.Barrier()
    windows.close()
    windows.close()


@pytest.mark.parametrize("memory", ["ipc", "nccl"])
def test_windows_of_processes(machine: FakeMachine, nccl: FakeNccl, memory: Memory) -> None:
    found = run_ranks(
        3, _with_cards(lambda ranks: _use(open_windows(memory, LAYOUT, ranks), ranks))
    )
    assert found == [None] * 3
    assert machine.left() == []
    assert all(card.used == 0 for card in machine.cards)


def test_windows_of_one_process(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 4)
    assert windows.stride == LAYOUT.window_bytes
    assert [windows.base(rank) - windows.base(0) for rank in range(4)] == [
        rank * windows.stride for rank in range(4)
    ]
    for rank in range(4):
        assert not windows.read(rank, "x").any()
        windows.fill(rank, "x", rank + 1, 500)
        view = windows.view(rank, "x", np.int16)
        assert view.size == 500
        assert view[249] == 0x0101 * (rank + 1)
        assert view[250] == 0
    windows.close()
    windows.close()
    assert machine.left() == []


def test_a_view_shares_memory_on_its_device(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    view = windows.view(0, "flags", np.int64)
    view[3] = 5
    assert windows.word(0, LAYOUT["flags"].offset + 24) == 5
    assert view.memptr.mem.owner is windows
    assert view.memptr.mem.device_id == 0
    with pytest.raises(AssertionError, match="not of this process"):
        windows.view(1, "flags")


@pytest.mark.parametrize(("at", "size"), [(-8, 8), (60, 8), (0, 72)])
def test_nothing_is_written_past_a_region(machine: FakeMachine, at: int, size: int) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    with pytest.raises(AssertionError, match="name='flags'"):
        windows.write(0, "flags", np.zeros(size, np.uint8), at)


def test_streams_are_named_or_the_windows_own(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    used: list[int] = []
    monkeypatch.setattr("cupy.cuda.runtime.streamSynchronize", used.append)
    windows.write(0, "x", np.ones(4, np.int64), stream=77)
    windows.read(0, "x", stream=78)
    windows.fill(0, "x", 0, 8, stream=79)
    windows.write(0, "x", np.ones(4, np.int64))
    assert used[:3] == [77, 78, 79]
    assert used[3] > 1000


def test_too_large_for_one_gpu(machine: FakeMachine) -> None:
    with pytest.raises(RuntimeFailure, match=r"2\.\d+ GB of GPU memory are needed"):
        VirtualWindows(Layout({"x": 1 << 29}), 4)
    assert machine.left() == []


@pytest.mark.parametrize("kind", [IpcWindows, NcclWindows])
def test_too_large_for_one_of_the_gpus(
    machine: FakeMachine, nccl: FakeNccl, kind: type[IpcWindows | NcclWindows]
) -> None:
    machine.cards[1].used = 900_000_000
    found = run_ranks(3, _with_cards(lambda ranks: kind(Layout({"x": 1 << 28}), ranks)))
    sentence = _one_sentence(found)
    assert "the GPU of rank 1 has 0.174 of 1.1 GB free" in sentence
    assert machine.cards[1].used == 900_000_000
    assert machine.left() == []


@pytest.mark.parametrize("call", ["malloc", "ipcGetMemHandle", "ipcOpenMemHandle", "memcpyAsync"])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_fails_on_one_rank_ends_all(machine: FakeMachine, call: str, rank: int) -> None:
    machine.faults[call, rank] = 2 if call == "malloc" else 205
    sentence = _one_sentence(run_ranks(3, _with_cards(lambda ranks: IpcWindows(LAYOUT, ranks))))
    assert f"rank {rank}" in sentence
    assert machine.left() == []


def test_owners_free_after_all_have_unmapped(machine: FakeMachine) -> None:
    def work(ranks: Ranks) -> None:
        windows = IpcWindows(LAYOUT, ranks)
        machine.calls.clear()
        ranks.comm.Barrier()
        windows.close()

    run_ranks(3, _with_cards(work))
    names = [name for name, _ in machine.calls if name in ("free", "ipcCloseMemHandle")]
    assert names == ["ipcCloseMemHandle"] * 6 + ["free"] * 3


def test_the_own_handle_is_not_opened(machine: FakeMachine) -> None:
    def work(ranks: Ranks) -> None:
        IpcWindows(LAYOUT, ranks).close()

    run_ranks(2, _with_cards(work))
    assert machine.calls.count(("ipcOpenMemHandle", 0)) == 1


def test_a_mapping_of_other_memory_is_found(machine: FakeMachine) -> None:
    machine.swapped = True
    sentence = _one_sentence(run_ranks(2, _with_cards(lambda ranks: IpcWindows(LAYOUT, ranks))))
    assert "shows rank 0 other memory (a word is 0, not 2)" in sentence
    assert machine.left() == []


def test_ranks_of_other_nodes_are_not_reachable(machine: FakeMachine) -> None:
    machine.visible = {0: [0, 1], 1: [0, 1], 2: [2]}

    def work(ranks: Ranks) -> list[bool]:
        windows = IpcWindows(LAYOUT, ranks)
        reached = [bool(windows.base(rank)) for rank in range(3)]
        if ranks.rank == 2:
            with pytest.raises(AssertionError, match="not reachable"):
                windows.word(0, 0)
        windows.close()
        return reached

    found = run_ranks(3, _with_cards(work), hosts=[0, 0, 1])
    assert found == [[True, True, False], [True, True, False], [False, False, True]]


def test_after_a_kernel_has_failed_closing_adds_no_error(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    for call in ("free", "streamDestroy"):
        machine.faults[call, 0] = 719
    windows.close()


def test_closing_twice_by_mistake_of_another_is_told(machine: FakeMachine) -> None:
    windows = VirtualWindows(LAYOUT, 1)
    machine.faults["free", 0] = 1
    with pytest.raises(RuntimeFailure, match="GPU memory cannot be freed: invalid argument"):
        windows.close()


# NCCL's


def test_windows_that_nccl_does_not_make(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.no_window = {1}
    sentence = _one_sentence(run_ranks(2, _with_cards(lambda ranks: NcclWindows(LAYOUT, ranks))))
    assert sentence.startswith("NCCL makes no symmetric window on rank 1")
    assert "NCCL_CUMEM_ENABLE" in sentence
    assert machine.left() == []


def test_a_peer_that_nccl_does_not_map(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.unreachable = {(0, 1)}
    sentence = _one_sentence(run_ranks(2, _with_cards(lambda ranks: NcclWindows(LAYOUT, ranks))))
    assert sentence.startswith("NCCL does not let rank 0 address the window of rank 1")
    assert machine.left() == []


def test_a_peer_of_another_node_that_nccl_does_not_map(
    machine: FakeMachine, nccl: FakeNccl
) -> None:
    nccl.unreachable = {(0, 1), (1, 0)}
    machine.visible = {0: [0], 1: [1]}

    def work(ranks: Ranks) -> int:
        windows = NcclWindows(LAYOUT, ranks)
        base = windows.base(1 - ranks.rank)
        windows.close()
        return base

    assert run_ranks(2, _with_cards(work), hosts=[0, 1]) == [0, 0]


def test_nccl_wants_equal_sizes(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks) -> None:
        NcclWindows(Layout({"x": 5_000_000 * (1 + ranks.rank)}), ranks)

    sentence = _one_sentence(run_ranks(2, _with_cards(work)))
    assert "rank 0 wants 6291456 bytes and rank 1 10485760" in sentence


def test_an_nccl_that_does_not_tell_where_windows_are(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.version = {-1: 22807}
    sentence = _one_sentence(run_ranks(2, _with_cards(lambda ranks: NcclWindows(LAYOUT, ranks))))
    assert sentence.startswith("NCCL 2.28.7 does not tell where windows are")


def test_memory_that_nccl_cannot_get(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.machine.faults["memsetAsync", 1] = 2
    sentence = _one_sentence(run_ranks(2, _with_cards(lambda ranks: NcclWindows(LAYOUT, ranks))))
    assert "out of GPU memory" in sentence
    assert machine.left() == []


def test_cupys_binding_makes_no_windows(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks) -> None:
        communicators = Communicators(ranks, binding="cupy")
        try:
            NcclWindows(LAYOUT, ranks, communicators)
        finally:
            communicators.close()

    sentence = _one_sentence(run_ranks(2, _with_cards(work)))
    assert "use nccl4py, or --memory ipc" in sentence


@pytest.mark.parametrize("aborting", [(0, 1), (1,)])
def test_windows_after_an_abort_are_left_to_the_process(
    machine: FakeMachine, nccl: FakeNccl, aborting: tuple[int, ...]
) -> None:
    def work(ranks: Ranks) -> None:
        communicators = Communicators(ranks, limit_s=0.3)
        windows = NcclWindows(LAYOUT, ranks, communicators)
        if ranks.rank in aborting:
            communicators.abort()
        windows.close()

    assert run_ranks(2, _with_cards(work)) == [None, None]


def test_an_abort_ends_nccl_before_windows_are_unmapped(
    machine: FakeMachine, nccl: FakeNccl
) -> None:
    def work(ranks: Ranks) -> None:
        communicators = Communicators(ranks, limit_s=0.3)
        NcclWindows(LAYOUT, ranks, communicators)
        communicators.abort()

    assert run_ranks(1, _with_cards(work)) == [None]
    assert nccl.ended == [("abort", 0), ("unmap", 0)]


def test_a_registration_that_does_not_end(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    def hang(*_: object) -> None:
        time.sleep(600)

    monkeypatch.setattr(sys.modules["nccl.core"].Communicator, "register_window", hang)

    made: list[Communicators] = []

    def work(ranks: Ranks) -> None:
        made.append(Communicators(ranks, limit_s=0.3))
        NcclWindows(LAYOUT, ranks, made[-1])

    found = run_ranks(2, _with_cards(work))
    assert all(isinstance(error, TimeoutFailure) for error in found)
    # Memory stays: the registration still has it. Nobody uses the communicators again.
    assert [block.is_owner for block in machine.left()] == [True, True]
    assert all(communicators.is_aborted for communicators in made)
    assert "the registration of rank 0's window has not ended within 0.3 s" in _one_sentence(found)


# Over MPI


def test_processes_that_mpi_starts() -> None:
    launcher = find_launcher(library_name())
    program = [sys.executable, str(ROOT / "tests" / "fake_rank.py")]
    done = subprocess.run(
        launcher.command(3, program),
        env={**launcher.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split()) == ["rank0:ok", "rank1:ok", "rank2:ok"]
