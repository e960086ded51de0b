"""Runs of many specs in order, on the simulator or on ranks that are started for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from bench.grid import Grid
from bench.ranks.job import Dispatcher
from bench.ranks.request import Request

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.records.record import Case
    from bench.timing import Timing

#: Gives the cases of each spec, in order.
RunAll = Callable[[Sequence["CaseSpec"]], Iterator["list[Case]"]]


def runner(timing: Timing, on_progress: Callable[[str, float], None]) -> RunAll:
    """Return what runs specs; of those that need ranks, all of a call are run by one job."""

    def run_all(specs: Sequence[CaseSpec]) -> Iterator[list[Case]]:
        grids = [grid_of(spec) for spec in specs if spec.device != "sim"]
        dispatcher = Dispatcher(specs, lambda *parent: Request(grids, timing, *parent), _no_header)
        early = True
        try:
            for spec in specs:
                yield dispatcher(spec, on_progress)
            early = False
        finally:
            dispatcher.close(early=early)

    return run_all


def grid_of(spec: CaseSpec) -> Grid:
    """Return the grid that expands into one spec."""
    work, fabric = spec.workload, spec.fabric
    return Grid(
        kernel=(_asked_as(spec),),
        form=(spec.form,),
        device=spec.device,
        fabric=(fabric.name,),
        cross_rail=fabric.cross_rail,
        sm_copy=(fabric.sm_end,),
        nodes=(spec.nodes,),
        ranks_per_node=(spec.ranks_per_node,),
        preset=(work.preset,),
        tokens=(work.num_tokens,),
        hidden=work.hidden,
        num_experts=work.num_experts,
        num_topk=work.num_topk,
        dispatch_dtype=(work.dispatch_dtype,),
        routing=(work.routing,),
        masked_ratio=work.masked_ratio,
        seed=work.seed,
        num_sms=(spec.num_sms,),
        skew_us=spec.skew_us,
        prefix=work.prefix,
        knob=tuple(f"{name}={value}" for name, value in spec.knobs),
    )


def _asked_as(spec: CaseSpec) -> str:
    """Return a kernel as a user asks for it."""
    name = f"{spec.source.path}:{spec.source.name}" if spec.source else spec.kernel
    return f"{name}/{spec.variant}"


def _no_header(*_: object) -> None:
    """Keep nothing of who the ranks are: a tuned file holds no times of ranks."""
