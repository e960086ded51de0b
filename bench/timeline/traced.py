"""One operation of one case on the simulator, recorded."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cases import CaseSpec
from bench.observed import Observed, Progress
from bench.predicted import Predicted
from bench.traffic.bounds import HalfOp
from comms.errors import EpbenchError, NothingRan, RuntimeFailure, TimeoutFailure, UsageError
from comms.sim.timeline import Recorder, Timeline
from kernels.protocol import Op
from kernels.registry import find_protocol

#: Ranks that are recorded where nobody says which: all of one node.
MOST_RANKS = 8


@dataclass(frozen=True, slots=True)
class Traced:
    """A recorded operation.

    Attributes:
        timeline: what happened.
        seen: times and check, None where the run did not end.
        error: why it did not.
    """

    timeline: Timeline
    seen: Observed | None
    error: EpbenchError | None


def trace_case(spec: CaseSpec, op: Op, recorder: Recorder, on_progress: Progress) -> Traced:
    """Run an operation of a case as `run` does, after the dispatch that it builds on.

    Raises:
        NothingRan: the kernel refuses it.
        EpbenchError: it ended before there was anything to show.
    """
    protocol = find_protocol(spec.kernel, spec.variant, spec.source, spec.impl)
    reason = protocol.refuses(spec.shape(), op, cross_rail=spec.fabric.cross_rail)
    if "sim" not in protocol.devices:
        reason = f"it runs on device {' or '.join(protocol.devices)} only"
    if reason is not None:
        raise NothingRan(f"nothing ran: {spec.kernel}/{spec.variant} {op}: {reason}")
    runner = Predicted(spec, protocol)
    if op == "combine" or spec.form != "fresh":
        runner.first_dispatch()
    halves: list[HalfOp] = ["dispatch", "combine"] if op == "pair" else [op]
    try:
        seen = runner.observe(halves, on_progress, recorder)
    except UsageError:
        raise
    except EpbenchError as error:
        if recorder.timeline is None:
            raise
        is_timeout = isinstance(error, TimeoutFailure)
        ended = error if is_timeout else RuntimeFailure(str(error))
        return Traced(recorder.timeline, None, ended)
    assert recorder.timeline is not None, "the run ended"
    return Traced(recorder.timeline, seen, None)


def ranks_to_record(spec: CaseSpec, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the ranks whose warps and ports are recorded.

    Raises:
        UsageError: a rank that the world does not have.
    """
    if asked is None:
        few = spec.world_size <= MOST_RANKS
        return tuple(range(spec.world_size if few else spec.ranks_per_node))
    for rank in asked:
        if rank >= spec.world_size:
            raise UsageError(
                f"--trace-ranks must be below the {spec.world_size} ranks of the world, got {rank}"
            )
    return tuple(dict.fromkeys(asked))
