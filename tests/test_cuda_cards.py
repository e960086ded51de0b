"""Which GPU a rank has, found together by all ranks, and whether GPUs reach each other."""

from collections.abc import Callable

import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_ranks import run_ranks

from comms.cuda.cards import (
    Card,
    Seen,
    assign,
    choose_cards,
    enable_peers,
    peer_matrix,
    use_card,
    visible_cards,
)
from comms.errors import RuntimeFailure
from comms.mpi.ranks import Ranks


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Eight GPUs."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return machine


def _one_sentence(found: list[object]) -> str:
    assert all(isinstance(error, RuntimeFailure) for error in found), found
    (sentence,) = {str(error) for error in found}
    return sentence


def _enable(ranks: Ranks) -> list[list[bool | None]]:
    cards = choose_cards(ranks)
    use_card(cards[ranks.rank])
    return enable_peers(ranks, cards)


def test_what_a_card_is(machine: FakeMachine) -> None:
    card = visible_cards()[2]
    assert card == Card(
        2, machine.cards[2].uuid, "0000:1d:00.0", "NVIDIA H800", (9, 0), 132, 1 << 30
    )
    assert card.arch == "sm_90"


def test_all_ranks_see_all_gpus(machine: FakeMachine) -> None:
    found = run_ranks(3, choose_cards)
    assert [card.index for card in found[0]] == [0, 1, 2]
    assert found[0] == found[1] == found[2]


def test_each_rank_sees_its_own(machine: FakeMachine) -> None:
    machine.visible = {0: [4], 1: [5], 2: [6]}
    for rank, cards in enumerate(run_ranks(3, choose_cards)):
        assert [card.index for card in cards] == [0, 0, 0]
        assert cards[rank].uuid == machine.cards[4 + rank].uuid


def test_pairs_of_ranks_see_the_same_two() -> None:
    seen = [Seen(rank, 0, ("a", "b") if rank < 2 else ("c", "d")) for rank in range(4)]
    assert assign(seen) == [0, 1, 0, 1]


def test_ranks_of_two_hosts_count_anew() -> None:
    seen = [Seen(rank, rank // 2, (f"{rank // 2}a", f"{rank // 2}b")) for rank in range(4)]
    assert assign(seen) == [0, 1, 0, 1]


def test_more_ranks_than_gpus(machine: FakeMachine) -> None:
    machine.visible = {rank: [3, 4] for rank in range(3)}
    sentence = _one_sentence(run_ranks(3, choose_cards))
    assert sentence.startswith(f"ranks 0 and 2 would have the same GPU ({machine.cards[3].uuid})")
    assert "--ranks-per-card" in sentence


def test_two_lists_that_overlap() -> None:
    with pytest.raises(RuntimeFailure, match="ranks 0 and 1 would have the same GPU \\(a\\)"):
        assign([Seen(0, 0, ("a", "b")), Seen(1, 0, ("a",))])


def test_the_same_gpu_on_what_look_like_two_hosts() -> None:
    with pytest.raises(RuntimeFailure, match="ranks 0 and 1 would have the same GPU"):
        assign([Seen(0, 0, ("a",)), Seen(1, 1, ("a",))])


def test_a_rank_without_gpus(machine: FakeMachine) -> None:
    machine.visible = {1: []}
    assert "there is no GPU for this process" in _one_sentence(run_ranks(2, choose_cards))
    with pytest.raises(RuntimeFailure, match="rank 0 sees no GPU"):
        assign([Seen(0, 0, ())])


@pytest.mark.parametrize("driver", [0, 12040])
def test_no_driver_that_fits(machine: FakeMachine, driver: int) -> None:
    machine.driver = driver
    sentence = _one_sentence(run_ranks(2, choose_cards))
    assert ("no NVIDIA driver" in sentence) == (driver == 0)


def test_peers_are_enabled_once_and_again(machine: FakeMachine) -> None:
    def twice(ranks: Ranks) -> list[list[bool | None]]:
        _enable(ranks)
        return enable_peers(ranks, choose_cards(ranks))

    assert run_ranks(3, twice)[1] == [[True] * 3] * 3
    assert machine.calls.count(("deviceEnablePeerAccess", 1)) == 4


def test_another_error_of_enabling_is_told(machine: FakeMachine) -> None:
    machine.faults["deviceEnablePeerAccess", 1] = 719
    assert "peer access of rank 1" in _one_sentence(run_ranks(2, _enable))


def test_gpus_that_do_not_reach_each_other(machine: FakeMachine) -> None:
    machine.blocked = {(1, 2)}
    sentence = _one_sentence(run_ranks(3, _enable))
    assert sentence.startswith("rank 1 cannot address the memory of rank 2 on the same node")
    assert "0000:1c:00.0" in sentence


def test_a_gpu_that_others_do_not_see(machine: FakeMachine) -> None:
    machine.visible = {0: [0], 1: [1]}
    sentence = _one_sentence(run_ranks(2, _enable))
    assert sentence.startswith("rank 0 does not see the GPU of rank 1")
    assert "CUDA_VISIBLE_DEVICES" in sentence


def test_ranks_of_other_nodes_are_not_asked(machine: FakeMachine) -> None:
    machine.visible = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    matrix = run_ranks(4, _enable, hosts=[0, 0, 1, 1])[0]
    assert matrix[0] == [True, True, None, None]
    assert matrix[3] == [None, None, True, True]


def test_the_matrix_of_one_process(machine: FakeMachine) -> None:
    machine.blocked = {(0, 1)}
    matrix = peer_matrix(visible_cards()[:3])
    assert matrix == [[True, False, True], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("work", [choose_cards, _enable])
def test_a_bug_on_one_rank_ends_all(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, work: Callable[[Ranks], object]
) -> None:
    import fake_ranks

    def fail(_: int) -> str:
        if fake_ranks.this_process().rank == 1:
            raise ZeroDivisionError("a bug")
        return "0000:00:00.0"

    monkeypatch.setattr("cupy.cuda.runtime.deviceGetPCIBusId", fail)
    found = run_ranks(2, work)
    assert {str(error) for error in found} == {"internal error on rank 1: ZeroDivisionError: a bug"}
    assert all(getattr(error, "exit_code", None) == 1 for error in found)
