"""What every rank of a job does: join the others, run the specs together, end with one code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.ranks.hosts import refuse_hosts
from bench.ranks.request import is_alone
from bench.records.record import Case, Rank
from bench.timing import Timing
from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.measured import Team
    from bench.ranks.supervisor import Supervisor
    from comms.cuda.cards import Card
    from comms.cuda.kept_nccl import KeptNccl
    from comms.mpi.ranks import Ranks

S = TypeVar("S", bound="Sink")

_POLL_S = 0.002
#: Between two looks at a simulated kernel, which has limits of its own.
_SIMULATION_S = 180.0
#: What a GPU's first call may take, which starts its driver where nothing else has.
_GPU_S = 120.0
#: More than hosts wait for each other at the end (comms/mpi/relay.py).
_RELAY_S = 10.0


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
    if ranks.num_hosts > 1 and any(spec.device == "cpu" for spec in specs):
        raise UsageError(
            f"device cpu needs all ranks on one host, these are on {ranks.num_hosts}: "
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
    worlds = _Worlds(ranks, specs, timing, card)
    for turn, spec in enumerate(specs, start=1):
        if sink is None:
            supervisor.rest()
            while control.turn() < turn:
                time.sleep(_POLL_S)
        else:
            control.set_turn(turn)
            sink.begin(spec)
        cases = _run(spec, worlds, supervisor, sink)
        if sink is not None:
            supervisor.watch("results")
            sink.end(spec, cases)
    supervisor.watch("the end")
    worlds.close()
    exit_code: int = ranks.comm.bcast(close(sink) if sink is not None else 0)
    ranks.comm.Barrier()
    control.set_done()
    supervisor.watch("the end of messages between hosts", _RELAY_S)
    control.close()
    supervisor.detach()
    if needs_mpi:
        leave()
    return exit_code


class _Worlds:
    """The worlds of all specs: the first ranks of the job, by their number."""

    def __init__(
        self, ranks: Ranks, specs: Sequence[CaseSpec], timing: Timing, card: Card | None
    ) -> None:
        """Make communicators; collective."""
        self._timing = timing
        self._card = card
        self.hosts: list[int] = ranks.comm.allgather(ranks.host)
        self.ranks: dict[int, Ranks | None] = {ranks.world_size: ranks}
        for size in sorted({spec.num_processes for spec in specs if spec.device != "sim"}):
            if size < ranks.world_size:
                self.ranks[size] = ranks.first(size)
        self._nccl: dict[int, KeptNccl] = {}
        if card is not None:
            from comms.cuda.kept_nccl import KeptNccl

            for size, own in self.ranks.items():
                if own is not None:
                    self._nccl[size] = KeptNccl(own, timing.timeout_s)

    def team(self, spec: CaseSpec, ranks: Ranks, supervisor: Supervisor) -> Team:
        """Return the ranks that run a spec, of which this is one."""
        from bench.measured import Team

        assert supervisor.control is not None
        on_gpu = spec.device == "cuda"
        return Team(
            ranks,
            supervisor.control,
            self._timing,
            supervisor.watch,
            self._card if on_gpu else None,
            self._nccl[ranks.world_size] if on_gpu else None,
        )

    def close(self) -> None:
        """Free what NCCL has; collective."""
        for nccl in self._nccl.values():
            nccl.close()


def _run(spec: CaseSpec, worlds: _Worlds, supervisor: Supervisor, sink: Sink | None) -> list[Case]:
    """Run a spec on the ranks of its world; the others have nothing to do."""
    from bench.harness import run_spec, skipped_cases

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
    if spec.num_processes not in worlds.ranks:
        have = max(worlds.ranks)
        return skipped_cases(spec, f"needs {spec.num_processes} ranks, {have} were launched")
    ranks = worlds.ranks[spec.num_processes]
    if ranks is None:
        return []
    if reason := refuse_hosts(worlds.hosts, *_nodes(spec)):
        return skipped_cases(spec, reason)
    return run_spec(spec, report, worlds.team(spec, ranks, supervisor))


def _nodes(spec: CaseSpec) -> tuple[int, int]:
    """Return the nodes of a spec and the processes of each: ranks of one GPU are one process."""
    if spec.num_processes == spec.world_size:
        return spec.nodes, spec.ranks_per_node
    return 1, spec.num_processes


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
