"""Predictions as a page of tables."""

import math
from collections.abc import Sequence

from bench.pages.tables import Sheet, Table
from bench.validation import closed_form
from bench.validation.prediction import Prediction, Predictions, Published

#: Constants of the simulator that are fitted to these rows: `bench.fitting.sm`.
NUM_CONSTANTS = 4
_CASE = (
    *(("kernel/variant", ""), ("gpu", ""), ("op", ""), ("EP", "")),
    *(("tokens", ""), ("groups", ""), ("sms", "")),
)
_RATES = (
    *(("bound", "(us)"), ("of bound", "(%)")),
    *(("logical nvlink", "(GB/s)"), ("logical rdma", "(GB/s)")),
    *(("nvlink", "(GB/s)"), ("rdma", "(GB/s)")),
)


def sheet(predictions: Predictions) -> Sheet:
    """Return the page of a file."""
    known = [case for case in predictions.cases if case.published is not None]
    new = [case for case in predictions.cases if case.published is None]
    tables = []
    if known:
        tables.append(_table("Published rows, which the constants are fitted to", known))
    if new:
        tables.append(_table("Predicted", new))
    heading = (
        "PREDICTED: V1's kernels told anew, simulated at full size, beside a closed form"
        + (", INCOMPLETE" if predictions.complete is False else ""),
        "closed form: alpha + max over ports of bytes / rate; "
        f"{closed_form.committed().num_parameters} parameters, the simulator's fitted constants "
        f"are {NUM_CONSTANTS}.",
        "logical: as V1 counts, bytes that stay on the rank or node too; low_latency has one rate. "
        "nvlink, rdma: rows at the fullest port.",
    )
    footer = [*(f"Skipped: {reason}" for reason in predictions.skipped)]
    if known:
        footer = [*summary([case.published for case in known if case.published]), *footer]
    return Sheet(heading, tuple(tables), tuple(footer))


def summary(rows: Sequence[Published]) -> list[str]:
    """Return which model is nearer to the published rows, in words."""
    simulator = _rms([row.residual_pct for row in rows])
    formula = _rms([row.closed_form_residual_pct for row in rows])
    nearer = sum(abs(row.residual_pct) < abs(row.closed_form_residual_pct) for row in rows)
    verdict = "is nearer" if simulator < formula else "does no better than the closed form"
    return [
        f"Residuals, root mean square of {len(rows)} rows: simulator {simulator:.1f} % with "
        f"{NUM_CONSTANTS} fitted constants, closed form {formula:.1f} % with "
        f"{closed_form.committed().num_parameters} parameters. The simulator is the nearer one in "
        f"{nearer} rows and {verdict} over all."
    ]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _table(title: str, cases: Sequence[Prediction]) -> Table:
    is_known = cases[0].published is not None
    times: tuple[tuple[str, str], ...] = (("simulated", "(us)"), ("closed form", "(us)"))
    if is_known:
        times = (
            *(("published", "(us)"), ("simulated", "(us)"), ("residual", "(%)")),
            *(("closed form", "(us)"), ("residual", "(%)"), ("nearer", "")),
        )
    columns = (*_CASE, *times, *_RATES)
    return Table(
        title,
        tuple(name for name, _ in columns),
        tuple(unit for _, unit in columns),
        tuple((*_case(case), *_times(case), *_rates(case)) for case in cases),
    )


def _case(case: Prediction) -> tuple[str, ...]:
    return (
        f"{case.kernel}/{case.variant}",
        case.gpu,
        case.op,
        str(case.world_size),
        str(case.num_tokens),
        case.groups or "-",
        str(case.num_sms),
    )


def _times(case: Prediction) -> tuple[str, ...]:
    row = case.published
    if row is None:
        return _us(case.time_us), _us(case.closed_form_us)
    is_nearer = abs(row.residual_pct) < abs(row.closed_form_residual_pct)
    return (
        _us(row.time_us),
        _us(case.time_us),
        f"{row.residual_pct:+.1f}",
        _us(case.closed_form_us),
        f"{row.closed_form_residual_pct:+.1f}",
        "simulator" if is_nearer else "closed form",
    )


def _rates(case: Prediction) -> tuple[str, ...]:
    return (
        _us(case.bound_us),
        "-" if case.efficiency is None else f"{100 * case.efficiency:.1f}",
        f"{case.logical_nvlink_gbs:.1f}",
        "-" if case.logical_rdma_gbs is None else f"{case.logical_rdma_gbs:.1f}",
        f"{case.nvlink_gbs:.1f}",
        f"{case.rdma_gbs:.1f}" if case.nodes > 1 else "-",
    )


def _us(value: float) -> str:
    return f"{value:.1f}"
