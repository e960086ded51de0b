"""Cases on fake GPUs, for tests: all ranks of a world on one, or a rank of threads on each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from fake_gpus import FakeMachine
from fake_launches import install_launches
from fake_ranks import run_ranks, this_process
from fake_streams import FakeGpu

from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.measured import Team
from bench.ranks.rank import take_card
from bench.records.record import Case
from bench.timing import Timing
from comms.cuda.kept_nccl import KeptNccl
from comms.fabric import ONE_CARD
from comms.mpi.alone import alone
from comms.mpi.control import Control
from comms.mpi.ranks import Ranks

QUICK = Timing(num_iters=2, num_warmup=1, timeout_s=20.0)
SMALL = Grid(
    device="cuda",
    kernel=("direct/pull",),
    fabric=("uncapped",),
    tokens=(12,),
    hidden=192,
    num_experts=8,
    num_topk=3,
    ranks_per_node=(2,),
    num_sms=(2,),
    prefix=None,
)


class FakeControl:
    """The page of a job whose ranks are threads."""

    def __init__(self) -> None:
        self._words = np.zeros(1, np.int64)

    @property
    def abort_address(self) -> int:
        """Address of the word that ends kernels."""
        return int(self._words.ctypes.data)

    def generation(self) -> int:
        """Return how often kernels were let run again."""
        return 0

    def clear_abort(self, generation: int) -> None:
        """Let kernels run again."""
        self._words[0] = 0

    def set_abort(self) -> None:
        """End kernels."""
        self._words[0] = 1


@contextmanager
def fake_gpu(folder: Path) -> Iterator[FakeGpu]:
    """Let there be GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        this_process().state.clear()
        yield install_launches(patch, FakeMachine(), folder)


def spec_of(**axes: object) -> CaseSpec:
    """Return a small spec; `axes` replace what it says."""
    (spec,) = expand([msgspec.structs.replace(SMALL, **axes)])
    return spec


def team_of(ranks: Ranks, timing: Timing = QUICK, control: FakeControl | None = None) -> Team:
    """Return a rank's team, with its GPU."""
    page = FakeControl() if control is None else control
    card = take_card(ranks)
    nccl = KeptNccl(ranks, timing.timeout_s)
    return Team(ranks, cast(Control, page), timing, lambda *_: None, card, nccl)


def run_on_one_card(timing: Timing = QUICK, **axes: object) -> list[Case]:
    """Run a spec with all ranks on one GPU."""
    spec = spec_of(**{"fabric": (ONE_CARD,), **axes})
    return run_spec(spec, lambda *_: None, team_of(alone(), timing))


def run_on_cards(
    num_ranks: int,
    timing: Timing = QUICK,
    before: Callable[[Ranks], Any] | None = None,
    hosts: Sequence[int] | None = None,
    **axes: object,
) -> list[Any]:
    """Run a spec with a rank on each GPU; return each rank's cases or error.

    Args:
        num_ranks: ranks.
        timing: how often to run.
        before: called on each rank.
        hosts: of each rank, all on one by default.
        axes: what the spec says otherwise than `SMALL`.
    """
    nodes = cast(tuple[int, ...], axes.get("nodes", (1,)))
    spec = spec_of(**{"ranks_per_node": (num_ranks // nodes[0],), **axes})
    control = FakeControl()

    def work(ranks: Ranks) -> list[Case]:
        if before is not None:
            before(ranks)
        return run_spec(spec, lambda *_: None, team_of(ranks, timing, control))

    return run_ranks(num_ranks, work, hosts)


def outcome(cases: list[Case]) -> dict[str, tuple[str, str | None]]:
    """Return status and reason by operation."""
    return {case.op: (case.status, case.reason) for case in cases}
