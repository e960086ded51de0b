"""Turned knobs: from `NAME=VALUE` as a user gives them to the specs that they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from comms.errors import UsageError

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from kernels.protocol import Protocol


def turn(specs: Sequence[CaseSpec], values: Mapping[str, int]) -> list[CaseSpec]:
    """Return specs with knobs turned, each those that its kernel has.

    A knob that is given its default is not turned: the spec is the same as without it.
    """
    if not values:
        return list(specs)
    turned = []
    for spec in specs:
        knobs = spec.protocol().knobs
        shape = replace(spec, knobs=()).shape()
        changed = {
            knob.name: values[knob.name]
            for knob in knobs
            if knob.name in values and values[knob.name] != knob.of(shape)
        }
        turned.append(replace(spec, knobs=tuple(sorted(changed.items()))))
    return turned


def knob_values(given: Iterable[str], specs: Sequence[CaseSpec]) -> dict[str, int]:
    """Return knobs by name from `NAME=VALUE`.

    Args:
        given: what a user wrote.
        specs: everything that is asked for.

    Raises:
        UsageError: a knob that none of the specs' kernels has, a value below 1, two values of one
            knob.
    """
    values: dict[str, int] = {}
    for item in given:
        name, _, text = item.partition("=")
        if not text.lstrip("-").isdecimal() or not name:
            raise UsageError(f"a knob must be given as NAME=VALUE, got {item!r}; {_known(specs)}")
        value = int(text)
        if values.setdefault(name, value) != value:
            raise UsageError(f"knob {name} is given twice, {values[name]} and {value}; give one")
    names = {knob.name for _, protocol in _protocols(specs) for knob in protocol.knobs}
    for name, value in values.items():
        if name not in names:
            raise UsageError(f"no knob {name!r} of the kernels asked for; {_known(specs)}")
        if value < 1:
            raise UsageError(f"knob {name} must be at least 1, got {value}; {_known(specs)}")
    return values


def told(knobs: Iterable[tuple[str, int]]) -> str:
    """Return knobs as a user gives them."""
    return ",".join(f"{name}={value}" for name, value in knobs)


def _known(specs: Sequence[CaseSpec]) -> str:
    parts = []
    for label, protocol in _protocols(specs):
        names = ", ".join(knob.name for knob in protocol.knobs)
        if names:
            parts.append(f"{label} has {names}")
    return "; ".join(parts) or "they have none"


def _protocols(specs: Sequence[CaseSpec]) -> list[tuple[str, Protocol]]:
    """Return each kernel of the specs once, with the name that tells it from the others."""
    kernels = {(spec.kernel, spec.variant, spec.source, spec.impl): spec for spec in specs}
    return [(spec.kernel_label(), spec.protocol()) for spec in kernels.values()]
