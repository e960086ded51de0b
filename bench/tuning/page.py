"""The page of a file of tuned knobs: default beside tuned, on seeds that no search has seen."""

from collections.abc import Sequence

import msgspec

from bench.knobs import told
from bench.labels import kernel_label
from bench.pages.table import FIDELITY
from bench.pages.tables import Sheet, Table
from bench.tuning.tuned_file import Entry, Point, Tuned
from comms.fabric import load_fabric

#: Axes of a point that rows of one table differ in.
_OF_ROWS = ("kernel", "variant", "source", "form", "num_sms")
_COLUMNS = {
    "kernel/variant": "",
    "form": "",
    "sms": "",
    "knobs": "",
    "default": "(us)",
    "tuned": "(us)",
    "ratio": "(x)",
    "holds": "",
    "search": "(x)",
    "runs": "",
}
_MODEL = (
    "TUNED TO THE MODEL: knobs were chosen by simulated times; what they are worth on hardware "
    "is not known."
)
_LEGEND = (
    "default, tuned: time on the check seeds, which the search did not see, mean over them.",
    "ratio: default / tuned there; search: the same on the seeds of the search.",
    "holds: whether tuned is faster than default on every check seed; else runs take the default.",
)


def tuned_page(tuned: Tuned) -> Sheet:
    """Return the page of a file."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in tuned.entries:
        groups.setdefault(_world(entry.point), []).append(entry)
    devices = {entry.point.device for entry in tuned.entries}
    heading = [FIDELITY["predicted"], _MODEL] if "sim" in devices else [FIDELITY["measured"]]
    sha = (tuned.tool.git_sha or "no git")[:8] + ("-dirty" if tuned.tool.git_dirty else "")
    state = "" if tuned.complete else ", INCOMPLETE"
    return Sheet(
        heading=(
            *heading,
            f"epbench {tuned.tool.version}, {sha}, tuned at {tuned.start_time}{state}",
            f"op {tuned.op}, seeds {_listed(tuned.seeds)}, check seeds "
            f"{_listed(tuned.check_seeds)}",
            *_LEGEND,
        ),
        tables=tuple(_table(entries) for entries in groups.values()),
        footer=tuple(
            f"skipped: {_label(one.point)} ({one.point.form} {one.point.num_sms} SMs): {one.reason}"
            for one in tuned.skipped
        ),
    )


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _label(point: Point) -> str:
    return kernel_label(point.kernel, point.variant, point.source, point.impl)


def _world(point: Point) -> tuple[object, ...]:
    names = [field.name for field in msgspec.structs.fields(point)]
    return tuple(getattr(point, name) for name in names if name not in _OF_ROWS)


def _table(entries: Sequence[Entry]) -> Table:
    return Table(
        title=_title(entries[0]),
        names=tuple(_COLUMNS),
        units=tuple(_COLUMNS.values()),
        rows=tuple(_cells(entry) for entry in entries),
        notes=tuple(note for entry in entries for note in _notes(entry)) + _fastest(entries),
    )


def _title(entry: Entry) -> str:
    point = entry.point
    is_sim = point.device == "sim"
    nodes = f"{point.nodes} node{'s' if point.nodes > 1 else ''} x {point.ranks_per_node}"
    parts = [
        f"{load_fabric(point.fabric).gpu}, SM copy {point.sm_copy}"
        if is_sim
        else f"device {point.device}",
        f"EP{point.nodes * point.ranks_per_node} ({nodes})",
        point.preset,
        f"hidden {point.hidden}, {point.num_experts} experts, top-{point.num_topk}",
        f"{point.num_tokens} tokens per rank",
        point.routing,
        f"{entry.op} {point.dispatch_dtype} + {point.combine_dtype}",
    ]
    if point.nodes > 1:
        parts.insert(2, f"cross-rail {point.cross_rail}")
    return " | ".join(parts)


def _cells(entry: Entry) -> tuple[str, ...]:
    point, check = entry.point, entry.check
    turned = {name: value for name, value in entry.found.items() if value != entry.default[name]}
    measured = ("-", "-", "-", "not checked")
    if check is not None:
        holds = ("yes" if check.holds else "no") if turned else "-"
        measured = (
            _mean(check.default_us),
            _mean(check.found_us),
            f"{check.ratio:.3f}",
            holds,
        )
    return (
        _label(point),
        point.form,
        str(point.num_sms),
        told(turned.items()) or "default",
        *measured,
        f"{sum(entry.default_us) / sum(entry.found_us):.3f}",
        str(entry.num_runs),
    )


def _mean(times_us: Sequence[float]) -> str:
    return f"{sum(times_us) / len(times_us):.1f}"


def _notes(entry: Entry) -> list[str]:
    """Return what a reader must know of an entry: its default, what was refused and dropped."""
    name = f"{_label(entry.point)} ({entry.point.num_sms} SMs)"
    notes = [f"default of {name}: {told(entry.default.items())}"]
    if not entry.complete:
        notes.append(f"not complete: {name}: the search was ended by its budget or interrupted")
    if entry.num_refused:
        notes.append(f"refused: {name}: {entry.num_refused} combinations that it cannot run")
    notes += [
        f"dropped, {one.status}: {name} with {told(one.knobs.items())}: {one.reason}"
        for one in entry.dropped
    ]
    return notes


def _fastest(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return which variant is the fastest where a kernel has several, by SMs and form."""
    groups: dict[tuple[str, str | None, str, int], list[Entry]] = {}
    for entry in entries:
        if entry.check is not None:
            point = entry.point
            key = (point.kernel, point.source, point.form, point.num_sms)
            groups.setdefault(key, []).append(entry)
    notes = []
    for (kernel, source, form, num_sms), rivals in groups.items():
        if len(rivals) < 2:
            continue
        ranked = sorted(rivals, key=_taken_us)
        texts = [f"{one.point.variant} {_taken_us(one):.1f} us" for one in ranked]
        name = f"{kernel} {source}" if source else kernel
        notes.append(f"fastest {name}, {form}, {num_sms} SMs: {', then '.join(texts)}")
    return tuple(notes)


def _taken_us(entry: Entry) -> float:
    """Return the mean time on the check seeds of the knobs that runs take."""
    assert entry.check is not None
    check = entry.check
    times_us = check.found_us if check.holds else check.default_us
    return sum(times_us) / len(times_us)
