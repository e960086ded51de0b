"""Tables of SM budgets: bandwidth against SMs, where it bends, and what the analytic model says."""

from collections.abc import Sequence

from bench.budgets import WITHIN, Knee, Sweep
from bench.labels import label_of
from bench.pages.tables import Table
from bench.records.record import Case

LEGEND = (
    "SM budgets: physical rate at the busiest port in percent of its cap, GB/s where nothing caps; "
    "at the middle of the SM's copy rate where that was run.",
    f"knee: smallest budget whose time is within {100 * WITHIN:.0f} % of the sweep's best, "
    "least..greatest over the copy rates that were run; in: where the true one lies, as far as the "
    "sweep tells: inf where the last budget alone was fast enough.",
    "model: SMs by the analytic model of DeepEP V2 (bench/traffic/sm_model.py).",
)


def budgets_table(title: str, sweeps: Sequence[Sweep]) -> Table:
    """Return one row per sweep, all of the same workload, world and operation.

    Args:
        title: what they have in common.
        sweeps: at least one.
    """
    budgets = sorted({num_sms for sweep in sweeps for num_sms in sweep.shown})
    unit = "(%)" if any(_is_capped(sweep.first) for sweep in sweeps) else "(GB/s)"
    return Table(
        title=f"SM BUDGETS | {title}",
        names=(
            "kernel/variant",
            "form",
            *(f"{num_sms} SMs" for num_sms in budgets),
            "knee",
            "in",
            "model",
        ),
        units=("", "", *(unit for _ in budgets), "(SMs)", "(SMs)", "(SMs)"),
        rows=tuple(_cells(sweep, budgets) for sweep in sweeps),
    )


def _cells(sweep: Sweep, budgets: Sequence[int]) -> tuple[str, ...]:
    case, shown, knee = sweep.first, sweep.shown, sweep.knee()
    model = sweep.model_sms()
    turned = "".join(f" {name}={case.knobs[name]}" for name in case.turned)
    return (
        f"{label_of(case)}{turned}",
        case.form,
        *(_rate(shown[num_sms]) if num_sms in shown else "-" for num_sms in budgets),
        str(knee.low) if knee.low == knee.high else f"{knee.low}..{knee.high}",
        _interval(knee),
        "-" if model is None else str(model),
    )


def _interval(knee: Knee) -> str:
    return f"({knee.above}, {'inf' if knee.is_open else knee.high}{')' if knee.is_open else ']'}"


def _is_capped(case: Case) -> bool:
    return case.caps.nvlink_gbs is not None


def _rate(case: Case) -> str:
    """Return the rate at the port that is the fullest of its cap, or the fastest uncapped."""
    if case.gbs is None:
        return "-"
    rates = ((case.gbs.nvlink, case.caps.nvlink_gbs), (case.gbs.rdma, case.caps.rdma_gbs))
    if _is_capped(case):
        return f"{max(100 * gbs / cap for gbs, cap in rates if cap):.0f}"
    return f"{max(gbs for gbs, _ in rates):.1f}"
