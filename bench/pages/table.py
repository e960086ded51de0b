"""The page of a run as text cells: blocks of comparable rows, and what a reader must know.

Layouts (plain, rich, Markdown) are in `bench.pages.render`.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.budgets import sweeps
from bench.labels import label_of
from bench.pages.budgets import LEGEND as BUDGETS_LEGEND
from bench.pages.budgets import budgets_table
from bench.pages.tables import Table
from bench.records.record import Case, Form, Run, TunedBy
from comms.fabric import ONE_CARD, load_fabric

COLUMNS = (
    "kernel/variant",
    "form",
    "sms",
    "knobs",
    "time",
    "range",
    "bound_own",
    "bound_best",
    "efficiency",
    "of memcpy",
    "nvlink",
    "rdma",
    "vs dedup",
    "vs selection",
    "#wrong",
)

#: Columns that only some devices and runs have.
_WHERE_KNOWN = ("knobs", "range", "bound_own", "bound_best", "efficiency", "of memcpy")
_OF_LINKS = ("nvlink", "rdma")

#: The library baseline of each device; rows are compared with the fastest `dedup` and `selection`
#: of a block, since a library may take as many SMs as make it fastest.
BASELINES = {"sim": "nccl_like", "cpu": "mpi", "cuda": "nccl"}

#: Most specs that are named of those that a file of tuned knobs has no entry for.
_MOST_UNTUNED = 4

FIDELITY = {
    "predicted": (
        "PREDICTED: simulated in virtual time from published constants (comms/fabrics/); "
        "no GPU ran."
    ),
    "paced": "PACED: real clocks, links slowed to their caps; not the hardware's own speed.",
    "measured": "MEASURED: timed on the hardware named.",
}

LEGEND = (
    "time: median over iterations of the slowest rank. GB/s is 1e9 bytes per second.",
    "knobs: knobs of the kernel that are not at their default.",
    "range: time over the published range of an SM's copy rate, where those cases were run.",
    "bound_own: least time for the bytes that this kernel moves; bound_best: likewise for one "
    "copy per node over the rail.",
    "efficiency: bound_own / time.",
    "nvlink, rdma: physical GB/s at the busiest port, of its cap in GB/s, and percent of it.",
    "of memcpy: time of memcpy of the bytes that a rank receives, one row per (token, rank), by "
    "one thread of as many processes at once, or on a GPU that ranks share of all its ranks' bytes "
    "/ time; above 100 % where a row is read once for "
    "several ranks, or summed as it is read. Median over iterations, each with a memcpy before it: "
    "where a machine's speed changes from row to row, this compares them better than times do.",
    "vs dedup: time of the baseline's fastest dedup row of the block and form, at whatever SMs, "
    "which stand below it, / time.",
    "vs selection: likewise, as (bytes factor: ratio of bound_own, of all bytes where nothing "
    "caps) x (efficiency factor).",
    "#wrong: rows that differ from the oracle, wrong counts, and writes that came too late.",
)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows with equal workload, world, fabric and operation.

    Attributes:
        has_links: whether ranks are joined by links.
        units: one cell for each of `COLUMNS`.
        rows: cells, likewise.
        notes: what did not run or is wrong, one sentence each.
    """

    title: str
    has_links: bool
    units: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """Indices of the columns to show: some only where a row has them."""
        return tuple(
            i
            for i, name in enumerate(COLUMNS)
            if (name not in _WHERE_KNOWN or any(row[i] != "-" for row in self.rows))
            and (name not in _OF_LINKS or self.has_links)
        )

    def table(self) -> Table:
        """Return the columns that are shown."""
        shown = self.columns
        return Table(
            title=self.title,
            names=tuple(COLUMNS[i] for i in shown),
            units=tuple(self.units[i] for i in shown),
            rows=tuple(tuple(row[i] for i in shown) for row in self.rows),
            notes=self.notes,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """What is printed of a run: `heading` and `footer` are lines.

    Attributes:
        budgets: how many SMs are enough, where enough budgets were run to tell.
    """

    heading: tuple[str, ...]
    blocks: tuple[Block, ...]
    footer: tuple[str, ...]
    budgets: tuple[Table, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, in order."""
        return (*(block.table() for block in self.blocks), *self.budgets)


def build_page(run: Run) -> Page:
    """Return the page of a run."""
    groups: dict[tuple[object, ...], list[Case]] = {}
    for case in run.cases:
        groups.setdefault(_block_key(case), []).append(case)
    budgets = tuple(
        budgets_table(_title(cases[0]), found)
        for cases in groups.values()
        if (found := sweeps(cases))
    )
    fidelities = dict.fromkeys(case.fidelity for case in run.cases)
    sha = (run.tool.git_sha or "no git")[:8] + ("-dirty" if run.tool.git_dirty else "")
    return Page(
        heading=(
            *(FIDELITY[fidelity] for fidelity in fidelities),
            f"epbench {run.tool.version}, {sha}, run {run.run_id[:8]} of {run.start_time}"
            + ("" if run.complete else ", INCOMPLETE"),
            *_machine(run),
            *(line for line in LEGEND if _is_told(line, run.cases)),
            *(BUDGETS_LEGEND if budgets else ()),
        ),
        blocks=tuple(_block(cases) for cases in groups.values()),
        footer=(*_sources(run.cases), *_tuned(run.config.tuned), _summary(run.cases)),
        budgets=budgets,
    )


def _sources(cases: Iterable[Case]) -> tuple[str, ...]:
    """Return a line about each file that kernels are from which are not in the repository."""
    return tuple(
        f"{source.path}:{source.name} is not in the repository, sha256 {source.sha256[:16]}"
        for source in dict.fromkeys(case.source for case in cases)
        if source
    )


def _tuned(by: TunedBy | None) -> tuple[str, ...]:
    """Return a line on what knobs of a file were tuned for, if not for every pair of the run."""
    if by is None:
        return ()
    told = []
    if by.ops != ["pair"]:
        told.append(f"knobs tuned for {' and '.join(by.ops)}, taken by all operations")
    if by.untuned:
        first, more = by.untuned[:_MOST_UNTUNED], len(by.untuned) - _MOST_UNTUNED
        rest = f" and {more} more" if more > 0 else ""
        told.append(f"no entry for {' | '.join(first)}{rest}, so the default")
    return (f"{by.file}: {'; '.join(told)}",) if told else ()


def _machine(run: Run) -> tuple[str, ...]:
    """Return lines about the processes that ran, none where all was simulated."""
    if not run.ranks:
        return ()
    where, most = run.environment, len(run.ranks)
    if any(case.device == "cuda" for case in run.cases):
        gpus = ", ".join(dict.fromkeys(rank.device for rank in run.ranks))
        driver = f", driver {where.gpu_driver}" if where.gpu_driver else ""
        return (f"{most} processes on {gpus}{driver}", *_slowed(run))
    line = f"{most} ranks on {where.num_cpus} cores of {where.cpu_model}, {where.mpi}"
    threads = max(
        (case.world_size * case.num_sms for case in run.cases if case.samples_us), default=0
    )
    if threads <= where.num_cpus:
        return (line,)
    return (
        f"{line}: with up to {threads} SMs of all ranks on them, times include waiting for a core",
    )


def _slowed(run: Run) -> tuple[str, ...]:
    """Return a line about iterations in which GPUs were slowed."""
    clocks = [case.clocks for case in run.cases if case.clocks and case.clocks.num_slowed]
    if not clocks:
        return ()
    reasons = dict.fromkeys(reason for one in clocks for reason in one.reasons)
    slowed, left_out = (
        sum(getattr(one, name) for one in clocks) for name in ("num_slowed", "num_discarded")
    )
    return (
        f"GPUs were slowed ({', '.join(reasons)}) in {slowed} iterations, {left_out} of which are "
        "left out",
    )


def _is_told(line: str, cases: Sequence[Case]) -> bool:
    """Return whether a line of the legend is about something that these cases have."""
    if line.startswith("knobs"):
        return any(case.turned for case in cases)
    if line.startswith("of memcpy"):
        return any(case.memcpy_samples_us for case in cases)
    if line.startswith("nvlink"):
        return any(_has_links(case) for case in cases)
    if line.startswith(("range", "bound_own", "efficiency")):
        return any(case.bound_own_us is not None for case in cases)
    return True


def setting_of(case: Case) -> tuple[object, ...]:
    """Return what comparable rows have in common, whatever their world and operation."""
    return (
        case.device,
        case.fidelity,
        case.fabric,
        case.cross_rail,
        case.preset,
        case.num_tokens,
        case.hidden,
        case.num_experts,
        case.num_topk,
        case.dispatch_dtype,
        case.combine_dtype,
        case.routing,
        case.masked_ratio,
        case.seed,
        case.skew_us,
    )


def _block_key(case: Case) -> tuple[object, ...]:
    return (*setting_of(case), case.nodes, case.world_size, case.op)


_RowKey = tuple[str, str, int, str]


def _row_key(case: Case) -> _RowKey:
    return (label_of(case), case.form, case.num_sms, turned_of(case))


def turned_of(case: Case) -> str:
    """Return the knobs that were turned, as a user gives them."""
    return ",".join(f"{name}={case.knobs[name]}" for name in case.turned)


def _block(cases: Sequence[Case]) -> Block:
    rows: dict[_RowKey, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.num_sms):
        rows.setdefault(_row_key(case), []).append(case)
    shown = {key: _headline(same) for key, same in rows.items()}
    first = cases[0]
    rivals = _rivals(shown.values())
    return Block(
        title=_title(first),
        has_links=_has_links(first),
        units=_units(first, rivals),
        rows=tuple(
            _cells(case, rows[key], rivals)
            for key, case in shown.items()
            if case.status != "skipped"
        ),
        notes=_notes(cases),
    )


def _rivals(shown: Iterable[Case]) -> dict[tuple[str, Form], Case]:
    """Return the fastest right row of the baseline by variant and form, fewest SMs first."""
    fastest: dict[tuple[str, Form], Case] = {}
    for case in shown:
        key = (case.variant, case.form)
        is_rival = case.kernel == BASELINES.get(case.device) and case.status == "passed"
        if is_rival and (key not in fastest or _time(case) < _time(fastest[key])):
            fastest[key] = case
    return fastest


def _time(case: Case) -> float:
    return math.inf if case.time_us is None else case.time_us


def _headline(same: Sequence[Case]) -> Case:
    return next((case for case in same if case.sm_copy == "mid"), same[0])


def _title(case: Case) -> str:
    dtypes = {"dispatch": case.dispatch_dtype, "combine": case.combine_dtype}
    dtype = dtypes.get(case.op, f"{case.dispatch_dtype} + {case.combine_dtype}")
    per_node = case.world_size // case.nodes
    nodes = f"{case.nodes} node{'s' if case.nodes > 1 else ''} x {per_node}"
    parts = [
        case.fidelity.upper(),
        load_fabric(case.fabric).gpu if case.device == "sim" else _device(case),
        f"EP{case.world_size} ({nodes})",
        case.preset,
        f"hidden {case.hidden}, {case.num_experts} experts, top-{case.num_topk}",
        f"{case.num_tokens} tokens per rank",
        f"{case.routing} seed {case.seed}",
        f"{case.op} {dtype}",
    ]
    if case.nodes > 1:
        parts.insert(3, f"cross-rail {case.cross_rail}")
    if case.masked_ratio:
        parts.append(f"masked {case.masked_ratio:g}")
    if case.skew_us:
        parts.append(f"skew {case.skew_us:g} us")
    return " | ".join(parts)


def _device(case: Case) -> str:
    """Return what ranks on real clocks ran on."""
    if case.fabric == ONE_CARD:
        return (
            f"device {case.device}, {ONE_CARD}: all ranks share one GPU, its memory and its cache"
        )
    return f"device {case.device}"


def _units(case: Case, rivals: Mapping[tuple[str, Form], Case]) -> tuple[str, ...]:
    def rate(cap: float | None) -> str:
        return "(GB/s)" if cap is None else f"(of {cap:g})"

    def sms(variant: str) -> str:
        found = dict.fromkeys(rivals[key].num_sms for key in sorted(rivals) if key[0] == variant)
        return f", {'/'.join(map(str, found))} SMs" if found else ""

    units = dict.fromkeys(COLUMNS, "")
    units |= dict.fromkeys(("time", "range", "bound_own", "bound_best"), "(us)")
    units |= {
        "efficiency": "(%)",
        "of memcpy": "(%)",
        "nvlink": rate(case.caps.nvlink_gbs),
        "rdma": rate(case.caps.rdma_gbs),
        "vs dedup": f"(x{sms('dedup')})",
        "vs selection": f"(bytes x eff{sms('selection')})",
    }
    return tuple(units.values())


def _cells(
    case: Case, same: Sequence[Case], rivals: Mapping[tuple[str, Form], Case]
) -> tuple[str, ...]:
    return (
        label_of(case),
        case.form,
        str(case.num_sms),
        turned_of(case) or "-",
        _us(case.time_us),
        _range(same),
        _us(case.bound_own_us),
        _us(case.bound_best_us),
        "-" if case.efficiency is None else f"{100 * case.efficiency:.1f}",
        _of_memcpy(case),
        _rate(case.gbs.nvlink if case.gbs and _has_links(case) else None, case.caps.nvlink_gbs),
        _rate(case.gbs.rdma if case.gbs and _has_links(case) else None, case.caps.rdma_gbs),
        _speed_up(case, rivals.get(("dedup", case.form))),
        _factors(case, rivals.get(("selection", case.form))),
        str(case.check.num_wrong) if case.check.num_checked else "N/A",
    )


def _us(time_us: float | None) -> str:
    if time_us is None:
        return "-"
    return f"{time_us:.2f}" if time_us < 100 else f"{time_us:.1f}"


def _range(same: Sequence[Case]) -> str:
    times = [case.time_us for case in same if case.time_us is not None]
    return f"{_us(min(times))}..{_us(max(times))}" if len(times) > 1 else "-"


def _has_links(case: Case) -> bool:
    """Return whether ranks are joined by links, and not by one memory."""
    return case.device != "cpu" and case.fabric != ONE_CARD


def _of_memcpy(case: Case) -> str:
    return f"{100 / _in_memcpys(case):.0f}" if case.memcpy_samples_us else "-"


def _in_memcpys(case: Case) -> float:
    """Return the median over iterations of time / the time of the `memcpy` before it."""
    pairs = zip(case.samples_us, case.memcpy_samples_us, strict=True)
    return statistics.median(time_us / copy_us for time_us, copy_us in pairs)


def _rate(gbs: float | None, cap: float | None) -> str:
    if not gbs:
        return "-"
    return f"{gbs:.1f}" if cap is None else f"{gbs:.1f} {100 * gbs / cap:.0f}%"


def _speed_up(case: Case, base: Case | None) -> str:
    if base is None or not base.time_us or not case.time_us:
        return "-"
    return f"{base.time_us / case.time_us:.2f}"


def _factors(case: Case, base: Case | None) -> str:
    if base is None or not case.time_us or not base.time_us:
        return "-"
    own, others = _least(case), _least(base)
    if not own or not others:
        return "-"
    by_bytes = others / own
    return f"{by_bytes:.2f} x {base.time_us / case.time_us / by_bytes:.2f}"


def _least(case: Case) -> float:
    """Return what a case's bytes cost at least: its bound, or the bytes where nothing caps."""
    if case.bound_own_us is not None or case.bytes is None:
        return case.bound_own_us or 0.0
    return float(case.bytes.local + case.bytes.nvlink + case.bytes.rdma)


def _notes(cases: Sequence[Case]) -> tuple[str, ...]:
    """Return one line per kernel, status and reason, with the forms and SMs it holds for."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        if case.status != "passed":
            key = (case.status, label_of(case), case.reason or "")
            turned = turned_of(case)
            point = f"{case.form} {case.num_sms}"
            merged.setdefault(key, []).append(f"{turned} {point}" if turned else point)
    return tuple(
        f"{status}: {kernel} ({', '.join(dict.fromkeys(points))} SMs): {reason}"
        for (status, kernel, reason), points in merged.items()
    )


def _summary(cases: Iterable[Case]) -> str:
    counts: dict[str, int] = {}
    num_wrong = num_checked = 0
    for case in cases:
        counts[case.status] = counts.get(case.status, 0) + 1
        num_wrong += case.check.num_wrong
        num_checked += case.check.num_checked
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    return f"Cases: {told}. Wrong rows: {num_wrong} of {num_checked} checked."
