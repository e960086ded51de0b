"""A question on the simulator: the time of each operation, and its bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.predicted import Predicted
from bench.traffic.bounds import HalfOp
from bench.validation.question import WAYS, Question, v1_constants
from bench.validation.traffic import Traffic, traffic_of
from comms.errors import WrongResults
from comms.fabric import Fabric


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the simulator says of one operation.

    Attributes:
        time_us: as V1 timed it.
        bound_us: least time for the bytes that the kernel must move.
        traffic: what it moved.
    """

    time_us: float
    bound_us: float
    traffic: Traffic


def simulate(
    question: Question,
    ops: Sequence[HalfOp],
    *,
    fabric: Fabric | None = None,
    fixed_us: float | None = None,
    on_progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[HalfOp, Answer]:
    """Run operations at their real sizes, checked against the oracle.

    Args:
        question: what to run.
        ops: what to time.
        fabric: other rates and costs than the GPU's.
        fixed_us: what to add to a low-latency kernel's time, V1's constant where None.
        on_progress: called with a short text and the share that is done.

    Raises:
        UsageError: the kernel cannot run this.
        WrongResults: an output is wrong.
    """
    spec = question.spec(fabric)
    if fixed_us is None:
        fixed_us = v1_constants().low_latency.fixed_us.value
    runner = Predicted(spec, question.check(ops))
    answers: dict[HalfOp, Answer] = {}
    if spec.form == "cached" or ops[0] != "dispatch":
        on_progress("first dispatch", 0.0)
        runner.first_dispatch()
    for place, op in enumerate(ops):

        def report(text: str, share: float, place: int = place, op: HalfOp = op) -> None:
            on_progress(f"{op} {text}", (place + share) / len(ops))

        seen = runner.observe([op], report)
        if seen.check.num_wrong:
            raise WrongResults(f"{spec.label()} {op} is incorrect: {seen.check.first}")
        time_us = seen.phases_us[op] if WAYS[question.kernel].by_kernel else seen.samples_us[0]
        if question.kernel == "low_latency":
            time_us += fixed_us
        bound_us = runner.account.own_us([op])
        traffic = traffic_of(question, op, runner.account.plan, spec.shape())
        answers[op] = Answer(time_us, bound_us, traffic)
    return answers
