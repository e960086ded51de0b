"""Device cuda on fake GPUs: what it launches, in what order, and that kernels are then right."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_world import fake_gpu, outcome, run_on_cards, run_on_one_card
from fake_launches import FakeGpu

PASSED = dict.fromkeys(("dispatch", "combine", "pair"), ("passed", None))


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[FakeGpu]:
    """Let there be GPUs."""
    with fake_gpu(tmp_path) as found:
        yield found


def test_ranks_on_one_card_are_right(gpu: FakeGpu) -> None:
    assert outcome(run_on_one_card()) == PASSED
    assert gpu.machine.left() == []


def test_ranks_on_cards_of_their_own_are_right(gpu: FakeGpu) -> None:
    for cases in run_on_cards(2):
        assert outcome(cases) == PASSED
    assert gpu.machine.left() == []
