"""The rows of the calibration that a question answers, and what was published as a time."""

from dataclasses import dataclass, replace
from typing import cast

from bench.fitting.published import Row, read_rows
from bench.traffic.bounds import HalfOp
from bench.validation.question import WAYS, Question
from bench.validation.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Point:
    """A published row and the question that it answers."""

    row: Row
    question: Question
    op: HalfOp

    def published_us(self, traffic: Traffic) -> float:
        """Return the published time; that of a rate is for the bytes of our own routing."""
        value = self.row.value
        if self.row.metric == "time_us":
            return value
        logical = {
            "logical_nvlink_gbs": traffic.logical_nvlink,
            "logical_rdma_gbs": traffic.logical_rdma,
        }
        return logical[self.row.metric] / value / 1000


def read_points() -> tuple[Point, ...]:
    """Return the rows about V1's kernels, in the order of the file."""
    kernels = {way.published: kernel for kernel, way in WAYS.items()}
    return tuple(
        Point(row, _question(row, kernels[row.kernel]), cast(HalfOp, row.op))
        for row in read_rows()
        if row.kernel in kernels
    )


def find_point(question: Question, op: HalfOp) -> Point | None:
    """Return the row that was published about a configuration, whatever its seed, or None."""
    spec = question.spec()
    for point in read_points():
        if point.op == op and replace(point.question, seed=question.seed).spec() == spec:
            return point
    return None


def _question(row: Row, kernel: str) -> Question:
    assert row.hidden
    assert row.num_topk
    assert row.num_experts
    return Question(
        gpu=row.gpu,
        kernel=kernel,
        nodes=row.nodes,
        num_tokens=row.num_tokens,
        hidden=row.hidden,
        num_topk=row.num_topk,
        num_experts=row.num_experts,
        groups=(row.num_topk_groups, row.num_groups) if row.num_groups else None,
        num_sms=row.num_sms,
    )
