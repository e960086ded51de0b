"""Where ranks meet before an operation, by the GPU's code on this machine's cores."""

import numpy as np
import pytest
from host_build import Mutation
from host_world import TIMED_OUT, Outcome, Windows, run, windows

MEET, GATE, STAMPS, ABORT = 64, 128, 192, 8
#: Ranks whose node is another's do not reach its memory.
_SOURCE = """
#include "cuh/meet.cu"

extern "C" __global__ void meet_of_host(ep::i64 is_apart) {
  using namespace ep;
  const i64 per_node = ep_machine.ranks_per_node;
  for (i64 peer = 0; peer < ep_machine.world_size; ++peer)
    if (is_apart && peer / per_node != own_rank() / per_node) ep_machine.bases[peer] = 0;
  epbench_meet(64, own(128), own(192));
}
"""


def _met(
    is_apart: bool, *, gate: int = 1, limit_s: float = 20.0, mutation: Mutation | None = None
) -> tuple[Windows, Outcome]:
    """Let three nodes of two ranks meet."""
    memory = windows(6, 4096)
    memory[:, GATE : GATE + 8].view(np.int64)[:] = gate
    outcome = run(
        _SOURCE,
        "meet_of_host",
        num_blocks=1,
        num_warps=1,
        params=[[int(is_apart)]] * 6,
        windows=memory,
        ranks_per_node=2,
        abort_offset=ABORT,
        limit_s=limit_s,
        mutation=mutation,
    )
    return memory, outcome


@pytest.mark.parametrize(("is_apart", "num_reached"), [(False, 6), (True, 2)])
def test_ranks_meet_those_that_they_reach(is_apart: bool, num_reached: int) -> None:
    memory, outcome = _met(is_apart)
    assert outcome.is_clean, outcome
    words = memory[:, MEET : MEET + 16].view(np.int64)
    assert (words == [num_reached, 1]).all(), words
    assert (memory[:, STAMPS : STAMPS + 8].view(np.int64) > 0).all()


def test_a_gate_that_stays_shut_ends_the_wait() -> None:
    _, outcome = _met(True, gate=0, limit_s=0.2)
    assert (outcome.report["cause"], outcome.report["wanted"]) == (TIMED_OUT, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if (ep_machine.bases[peer] == 0) continue;", ""),
        ("epoch * sum_lanes(num_reached)", "epoch * ep_machine.world_size"),
    ],
)
def test_a_mistake_is_seen(old: str, new: str) -> None:
    _, outcome = _met(True, limit_s=0.2, mutation=Mutation("cuh/meet.cu", old, new))
    assert not outcome.is_clean
