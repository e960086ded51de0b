"""What every rank of a job does: join the others, run the specs together, end with one code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.ranks.request import is_alone
from bench.records.record import Case, Rank
from bench.timing import Timing
from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.ranks.supervisor import Supervisor
    from comms.cuda.cards import Card
    from comms.mpi.ranks import Ranks

S = TypeVar("S", bound="Sink")

_POLL_S = 0.002
#: Between two looks at a simulated kernel, which has limits of its own.
_SIMULATION_S = 180.0
#: What a GPU's first call may take, which starts its driver where nothing else has.
_GPU_S = 120.0


class Sink(Protocol):
    """Where the first rank puts what is found."""

    def begin(self, spec: CaseSpec) -> None:
        """Start a spec."""

    def update(self, stage: str, fraction: float) -> None:
        """Report that `fraction` (0 to 1) of `stage` is done."""

    def end(self, spec: CaseSpec, cases: list[Case]) -> None:
        """Keep the cases of a spec."""


def run_rank(
    supervisor: Supervisor,
    specs: Sequence[CaseSpec],
    timing: Timing,
    open_sink: Callable[[list[Rank], str], S],
    close: Callable[[S], int],
) -> int:
    """Join the other ranks, run specs with them and return the exit code that all agree on.

    Args:
        supervisor: watches this rank.
        specs: what to run, the same on every rank.
        timing: how to time it.
        open_sink: called by the first rank, when all have met, with who they are and the name of
            the MPI library.
        close: called by the first rank when all specs have run; returns the exit code.
    """
    from comms.mpi.alone import alone
    from comms.mpi.control import Control
    from comms.mpi.launched import launched
    from comms.mpi.ranks import join, leave

    supervisor.watch("MPI's start")
    needs_mpi = launched() is not None or not is_alone(specs)
    ranks = join(launched()) if needs_mpi else alone()
    if ranks.num_hosts > 1:
        raise UsageError(
            f"devices cpu and cuda need all ranks on one host, these are on {ranks.num_hosts}: "
            "start them on one (--nodes makes virtual nodes of its ranks)"
        )
    control = Control(ranks)
    supervisor.control = control
    card = None
    if any(spec.device == "cuda" for spec in specs):
        supervisor.watch("GPUs", _GPU_S)
        card = take_card(ranks)
    supervisor.watch("results")
    who = ranks.comm.gather(_describe(ranks, card))
    sink = None if who is None else open_sink(who, ranks.library)
    worlds: dict[int, Ranks | None] = {ranks.world_size: ranks}
    for size in sorted({spec.num_processes for spec in specs if spec.device != "sim"}):
        if size < ranks.world_size:
            worlds[size] = ranks.first(size)
    for turn, spec in enumerate(specs, start=1):
        if sink is None:
            supervisor.rest()
            while control.turn() < turn:
                time.sleep(_POLL_S)
        else:
            control.set_turn(turn)
            sink.begin(spec)
        cases = _run(spec, worlds, timing, supervisor, sink, card)
        if sink is not None:
            supervisor.watch("results")
            sink.end(spec, cases)
    supervisor.watch("the end")
    exit_code: int = ranks.comm.bcast(close(sink) if sink is not None else 0)
    ranks.comm.Barrier()
    control.set_done()
    # MPI takes the shared page away.
    supervisor.detach()
    if needs_mpi:
        leave()
    return exit_code


def _run(
    spec: CaseSpec,
    worlds: dict[int, Ranks | None],
    timing: Timing,
    supervisor: Supervisor,
    sink: Sink | None,
    card: Card | None,
) -> list[Case]:
    """Run a spec on the ranks of its world; the others have nothing to do."""
    from bench.harness import run_spec, skipped_cases
    from bench.measured import Team

    def report(stage: str, fraction: float) -> None:
        if sink is not None:
            sink.update(stage, fraction)

    if spec.device == "sim":
        if sink is None:
            return []

        def watched(stage: str, fraction: float) -> None:
            supervisor.watch(f"simulation of {spec.kernel}/{spec.variant}", _SIMULATION_S)
            report(stage, fraction)

        return run_spec(spec, watched)
    if spec.num_processes not in worlds:
        have = max(worlds)
        return skipped_cases(spec, f"needs {spec.num_processes} ranks, {have} were launched")
    ranks = worlds[spec.num_processes]
    if ranks is None:
        return []
    assert supervisor.control is not None
    team = Team(
        ranks,
        supervisor.control,
        timing,
        supervisor.watch,
        card if spec.device == "cuda" else None,
    )
    return run_spec(spec, report, team)


def take_card(ranks: Ranks) -> Card:
    """Return this rank's GPU, which this thread uses from now on; collective.

    Raises:
        RuntimeFailure: there is no driver, package or GPU for some rank, or GPUs of one node do not
            address each other's memory; in the same words on all ranks.
    """
    from comms.cuda.cards import choose_cards, enable_peers, use_card
    from comms.mpi.together import together

    cards = choose_cards(ranks)
    together(ranks, lambda: use_card(cards[ranks.rank]))
    enable_peers(ranks, cards)
    return cards[ranks.rank]


def _describe(ranks: Ranks, card: Card | None) -> Rank:
    from comms.mpi.ranks import cores

    return Rank(
        rank=ranks.rank,
        local_rank=ranks.local_rank,
        node_rank=ranks.host,
        device=f"cpu {_spans(cores())}" if card is None else f"{card.name} {card.pci}",
    )


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as spans, for example `0-3,8`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
