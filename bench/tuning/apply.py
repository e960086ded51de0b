"""Giving specs the knobs that a file of tuned knobs has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from bench.knobs import turn
from bench.labels import kernel_label
from bench.records.record import TunedBy
from bench.tuning.tuned_file import Entry, Point, Tuned
from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.cases import CaseSpec

#: What a spec and an entry must have in common; over the rest tuned knobs are meant to hold.
MATCHED = (
    "kernel",
    "variant",
    "source",
    "impl",
    "form",
    "device",
    "fabric",
    "cross_rail",
    "nodes",
    "ranks_per_node",
    "num_tokens",
    "hidden",
    "num_experts",
    "num_topk",
    "dispatch_dtype",
    "combine_dtype",
    "num_sms",
)


def point_of(spec: CaseSpec) -> Point:
    """Return a spec's axes, as a file of tuned knobs names them."""
    source = spec.source.path if spec.source else None
    axes = {**spec.axes(), "ranks_per_node": spec.ranks_per_node, "source": source}
    return msgspec.convert(axes, Point)


def with_tuned(specs: Sequence[CaseSpec], tuned: Tuned, source: str) -> list[CaseSpec]:
    """Return specs with the knobs of the entry that matches each, else as they are.

    Of several entries the one of the same end of the SM's copy rate counts, then the one of its
    middle, then the first.

    Args:
        specs: what is run.
        tuned: the file's content.
        source: the file, for messages.

    Raises:
        UsageError: nothing in the file matches any of the specs, or a kernel has no longer a knob.
    """
    found = [(spec, _entry_of(spec, tuned.entries)) for spec in specs]
    if all(entry is None for _, entry in found):
        told = "; ".join(dict.fromkeys(_told(entry.point) for entry in tuned.entries[:3]))
        raise UsageError(
            f"nothing in {source} was tuned for what is asked for: "
            + (f"it has {told}" if told else "it has no entries")
            + f"{', ...' if len(tuned.entries) > 3 else ''}; run `epbench tune` for it"
        )
    turned = []
    for spec, entry in found:
        if entry is not None:
            _check_names(spec, entry, source)
            turned += turn([spec], entry.taken)
        else:
            turned.append(spec)
    return turned


def tuned_by(specs: Sequence[CaseSpec], tuned: Tuned, source: str) -> TunedBy:
    """Return what a run file says of `with_tuned`, which has the same arguments."""
    found = [(spec, _entry_of(spec, tuned.entries)) for spec in specs]
    return TunedBy(
        file=source,
        ops=list(dict.fromkeys(entry.op for _, entry in found if entry)),
        untuned=list(dict.fromkeys(spec.label() for spec, entry in found if entry is None)),
    )


def _entry_of(spec: CaseSpec, entries: Sequence[Entry]) -> Entry | None:
    point = point_of(spec)
    wanted = [getattr(point, name) for name in MATCHED]
    matching = [
        entry for entry in entries if [getattr(entry.point, name) for name in MATCHED] == wanted
    ]
    ends = (point.sm_copy, "mid")
    closest = sorted(
        matching,
        key=lambda entry: (
            ends.index(entry.point.sm_copy) if entry.point.sm_copy in ends else len(ends)
        ),
    )
    return closest[0] if closest else None


def _check_names(spec: CaseSpec, entry: Entry, source: str) -> None:
    names = {knob.name for knob in spec.protocol().knobs}
    for name in entry.taken:
        if name not in names:
            raise UsageError(
                f"{source} has knob {name} of {spec.kernel}/{spec.variant}, which has "
                f"{', '.join(sorted(names)) or 'none'} now: run `epbench tune` again"
            )


def _told(point: Point) -> str:
    where = point.fabric if point.device == "sim" else point.device
    label = kernel_label(point.kernel, point.variant, point.source, point.impl)
    return (
        f"{label} {point.form}, {where}, "
        f"{point.nodes} x {point.ranks_per_node} ranks, {point.num_tokens} tokens, "
        f"{point.num_sms} SMs"
    )
