"""One table over several runs: every kernel in every world, at its best SMs and at given ones.

Rows are pairs of dispatch and combine, at the middle of the SM's copy rate. Runs of different
machines share no table, nor do simulations under different constants.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.labels import label_of
from bench.pages.table import BASELINES, FIDELITY, setting_of
from bench.pages.tables import Sheet, Table
from bench.records.record import Case, Op, Run

NAMES = (
    "world",
    "kernel/variant",
    "sms",
    "dispatch",
    "eff",
    "combine",
    "eff",
    "pair",
    "of own",
    "of best",
    "vs dedup",
    "vs selection",
    "#wrong",
)
UNITS = (
    *("", "", "", "(us)", "(%)", "(us)", "(%)", "(us)", "(%)", "(%)"),
    *("(bytes x eff)", "(bytes x eff)", ""),
)
LEGEND = (
    "Rows: each kernel at the SMs where its pair is fastest of those that were run (*), and at the "
    "SMs asked for.",
    "eff, of own: bound_own / time, the bytes that this kernel moves; of best: bound_best / time, "
    "one copy per node over the rail.",
    "vs dedup, vs selection: pair time of the baseline's fastest row of that world / pair time; "
    "bytes factor is the ratio of bound_own, eff that of the efficiencies.",
)

#: One point of a kernel: its cases by operation.
_Point = dict[Op, Case]


def build_overview(runs: Sequence[Run], budgets: Sequence[int]) -> Sheet:
    """Return the page of runs.

    Args:
        runs: what was stored.
        budgets: SMs at which every kernel is shown besides its best.
    """
    fidelities = sorted({case.fidelity for run in runs for case in run.cases})
    settings: dict[tuple[object, ...], list[Case]] = {}
    for run in runs:
        for case in run.cases:
            if case.sm_copy == "mid" and case.form == "fresh" and not case.turned:
                settings.setdefault((run.machine_id, *setting_of(case)), []).append(case)
    alike = Counter(key[1:] for key in settings)
    return Sheet(
        heading=(*(FIDELITY[one] for one in fidelities), *LEGEND),
        tables=tuple(
            _table(found, budgets, f" | {key[0]}" if alike[key[1:]] > 1 else "")
            for key, found in settings.items()
        ),
        footer=(f"Runs: {', '.join(map(_named, runs))}.",),
    )


def _named(run: Run) -> str:
    return f"{run.run_id} of {run.start_time}" + ("" if run.complete else ", INCOMPLETE")


def _title(case: Case) -> str:
    links = (case.fabric, f"cross-rail {case.cross_rail}")
    parts = [
        case.fidelity.upper(),
        *(links if case.device == "sim" else (f"device {case.device}",)),
        case.preset,
        f"hidden {case.hidden}, {case.num_experts} experts, top-{case.num_topk}",
        f"{case.num_tokens} tokens per rank",
        f"{case.routing} seed {case.seed}",
        f"{case.dispatch_dtype} + {case.combine_dtype}",
    ]
    if case.masked_ratio:
        parts.append(f"masked {case.masked_ratio:g}")
    if case.skew_us:
        parts.append(f"skew {case.skew_us:g} us")
    return " | ".join(parts)


def _table(cases: Sequence[Case], budgets: Sequence[int], machine: str) -> Table:
    first = cases[0]
    kernels: dict[tuple[int, int, str], dict[int, _Point]] = {}
    for case in cases:
        if case.status == "passed":
            key = (case.world_size, case.nodes, label_of(case))
            kernels.setdefault(key, {}).setdefault(case.num_sms, {})[case.op] = case
    rows = []
    for world in sorted({key[:2] for key in kernels}):
        here = {key[2]: points for key, points in kernels.items() if key[:2] == world}
        rivals = {
            variant: _fastest(here.get(f"{BASELINES[first.device]}/{variant}", {}))
            for variant in ("dedup", "selection")
        }
        for kernel, points in here.items():
            best = _fastest(points)
            if best is None:
                continue
            asked = [points[num_sms] for num_sms in budgets if "pair" in points.get(num_sms, {})]
            shown = [best, *(point for point in asked if point is not best)]
            rows += [_cells(kernel, point, point is best, rivals) for point in shown]
    return Table(
        title=_title(first) + machine,
        names=NAMES,
        units=UNITS,
        rows=tuple(rows),
        notes=_refusals(cases),
    )


def _fastest(points: dict[int, _Point]) -> _Point | None:
    pairs = [point for point in points.values() if "pair" in point]
    return min(pairs, key=lambda point: point["pair"].time_us or 0.0, default=None)


def _cells(
    kernel: str, point: _Point, is_best: bool, rivals: dict[str, _Point | None]
) -> tuple[str, ...]:
    pair = point["pair"]
    dedup, selection = rivals["dedup"], rivals["selection"]
    return (
        f"EP{pair.world_size} ({pair.nodes} x {pair.world_size // pair.nodes})",
        kernel,
        f"{pair.num_sms}{'*' if is_best else ''}",
        _us(point.get("dispatch")),
        _percent(point.get("dispatch")),
        _us(point.get("combine")),
        _percent(point.get("combine")),
        _us(pair),
        _percent(pair),
        _of_best(pair),
        _factors(dedup, pair),
        _factors(selection, pair),
        str(pair.check.num_wrong) if pair.check.num_checked else "N/A",
    )


def _us(case: Case | None) -> str:
    return "-" if case is None or case.time_us is None else f"{case.time_us:.0f}"


def _percent(case: Case | None) -> str:
    return "-" if case is None or case.efficiency is None else f"{100 * case.efficiency:.1f}"


def _of_best(case: Case) -> str:
    if case.bound_best_us is None or case.time_us is None:
        return "-"
    return f"{100 * case.bound_best_us / case.time_us:.1f}"


def _ratio(rival: _Point, pair: Case) -> float:
    return (rival["pair"].time_us or 0.0) / (pair.time_us or 1.0)


def _factors(rival: _Point | None, pair: Case) -> str:
    """Return a speed-up as the product of fewer bytes and higher efficiency."""
    if rival is None:
        return "-"
    base = rival["pair"]
    if not base.bound_own_us or not pair.bound_own_us:
        return f"{_ratio(rival, pair):.2f}"
    by_bytes = base.bound_own_us / pair.bound_own_us
    total = _ratio(rival, pair)
    return f"{total:.2f} = {by_bytes:.2f} x {total / by_bytes:.2f}"


def _refusals(cases: Iterable[Case]) -> tuple[str, ...]:
    worlds: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        if case.status != "passed":
            key = (case.status, label_of(case), case.reason or "")
            worlds.setdefault(key, []).append(f"EP{case.world_size}")
    return tuple(
        f"{status}: {kernel} ({', '.join(dict.fromkeys(where))}): {reason}"
        for (status, kernel, reason), where in worlds.items()
    )
