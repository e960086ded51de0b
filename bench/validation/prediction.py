"""Predictions as records, and the file that holds them.

Every key carries its unit, absent values are `null`.
"""

from pathlib import Path

import msgspec

from bench.records import files
from bench.records.record import Form
from bench.traffic.bounds import HalfOp
from bench.validation import closed_form
from bench.validation.calibration import Point
from bench.validation.question import WAYS, Question
from bench.validation.simulated import Answer
from comms.errors import RuntimeFailure, UsageError

SCHEMA = "epbench-validation"
SCHEMA_VERSION = "1.1.0"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What was published about a case, and how far from it both models are.

    Attributes:
        time_us: the value as a time; that of a rate is for the bytes of our own routing.
        residual_pct: by how much the simulated time is longer.
        closed_form_residual_pct: by how much the closed form's is.
    """

    source: str
    metric: str
    value: float
    time_us: float
    residual_pct: float
    closed_form_residual_pct: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of one configuration.

    Attributes:
        kernel: `ring`, `ring_two_hop` or `low_latency`, V1's kernels told anew.
        groups: "M of N" where a token may use M of N groups of experts, null for uniform routing.
        time_us: simulated, as V1 timed it.
        closed_form_us: alpha + max over ports of bytes / rate.
        bound_us: least time for the bytes that the kernel must move.
        efficiency: `bound_us / time_us`.
        logical_nvlink_gbs: as V1 counts: rows of (token, rank), those that stay on the rank too; of
            `low_latency` one rate for all selections, whatever link they took.
        logical_rdma_gbs: likewise, rows of (token, node), the own node's too; null on one node but
            for `low_latency`, which has its one rate here as well.
        nvlink_gbs: rows at the fullest NVLink port, without what acknowledges them.
        rdma_gbs: rows at the fullest NIC.
    """

    gpu: str
    kernel: str
    variant: str
    op: HalfOp
    form: Form
    nodes: int
    world_size: int
    num_tokens: int
    hidden: int
    num_topk: int
    num_experts: int
    groups: str | None
    num_sms: int
    seed: int
    time_us: float
    closed_form_us: float
    bound_us: float
    efficiency: float | None
    logical_nvlink_gbs: float
    logical_rdma_gbs: float | None
    nvlink_gbs: float
    rdma_gbs: float
    published: Published | None = None

    @property
    def status(self) -> str:
        """What a case is worth: predictions are of runs that passed their checks."""
        return "passed"

    @property
    def reason(self) -> None:
        """Why it did not pass."""


class Predictions(msgspec.Struct, kw_only=True):
    """The file.

    Attributes:
        command: the command line that made it.
        complete: False while it goes on and for ever if it did not end well; null in files of
            version 1.0, which do not say.
        cases: one for each operation.
        skipped: configurations that did not run, with the reason.
    """

    schema: str = SCHEMA
    schema_version: str = SCHEMA_VERSION
    command: str
    complete: bool | None = None
    cases: list[Prediction]
    skipped: list[str] = []


def predict(
    question: Question, op: HalfOp, answer: Answer, point: Point | None = None
) -> Prediction:
    """Return the record of an answer, and of a published row where there is one."""
    spec, traffic, time_us = question.spec(), answer.traffic, answer.time_us
    closed_us = closed_form.committed().time_us(question, traffic)
    per_us = 1 / (1000 * time_us)
    one_rate = WAYS[question.kernel].granularity == "selection"
    return Prediction(
        gpu=question.gpu,
        kernel=question.kernel,
        variant=spec.variant,
        op=op,
        form=spec.form,
        nodes=spec.nodes,
        world_size=spec.world_size,
        num_tokens=spec.workload.num_tokens,
        hidden=spec.workload.hidden,
        num_topk=spec.workload.num_topk,
        num_experts=spec.workload.num_experts,
        groups="{} of {}".format(*question.groups) if question.groups else None,
        num_sms=spec.num_sms,
        seed=question.seed,
        time_us=time_us,
        closed_form_us=closed_us,
        bound_us=answer.bound_us,
        efficiency=answer.bound_us / time_us if answer.bound_us > 0 else None,
        logical_nvlink_gbs=traffic.logical_nvlink * per_us,
        logical_rdma_gbs=(traffic.logical_rdma * per_us if spec.nodes > 1 or one_rate else None),
        nvlink_gbs=traffic.nvlink * per_us,
        rdma_gbs=traffic.rdma * per_us,
        published=None if point is None else _published(point, answer, closed_us),
    )


def _published(point: Point, answer: Answer, closed_us: float) -> Published:
    published_us = point.published_us(answer.traffic)
    return Published(
        source=point.row.source,
        metric=point.row.metric,
        value=point.row.value,
        time_us=published_us,
        residual_pct=100 * (answer.time_us / published_us - 1),
        closed_form_residual_pct=100 * (closed_us / published_us - 1),
    )


def probe(path: Path) -> None:
    """Find out whether a file can be written, before anything runs.

    Raises:
        UsageError: it cannot.
    """
    try:
        files.probe(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {files.why(error)}") from error


def write_predictions(path: Path, predictions: Predictions, *, last: bool) -> None:
    """Write the file in one step.

    Args:
        path: the file; a device or a pipe is written once, at the end.
        predictions: its content.
        last: whether this is the end.

    Raises:
        RuntimeFailure: it cannot be written.
    """
    try:
        files.write_target(path, files.encode(predictions), last=last)
    except OSError as error:
        raise RuntimeFailure(f"cannot write {path}: {files.why(error)}") from error


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        return files.decode(path.read_bytes(), Predictions, SCHEMA, SCHEMA_VERSION)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {files.why(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a file of epbench validate: {error}") from error
