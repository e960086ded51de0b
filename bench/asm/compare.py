"""Kernels of two revisions, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.pages.tables import Sheet, Table

Told = Mapping[str, Any]

_NAMES = ("kernel/variant", "launch", "impl")
#: Figures that are shown of each kernel, with their columns, units and digits.
_MAIN = {
    "num_warps": ("block", "(warps)", 0),
    "registers": ("registers", "", 0),
    "spill_bytes": ("spill", "(bytes)", 0),
    "shared_bytes": ("shared", "(bytes)", 0),
    "warps_per_sm": ("warps", "(per SM)", 0),
    "num_instructions": ("instructions", "", 0),
    "instructions_per_16b": ("instr", "(per 16 B)", 2),
    "bytes_in_flight": ("in flight", "(bytes)", 0),
    "share_128": ("128-bit", "(share)", 2),
}
#: What differs from run to run, or names what is compared.
_IGNORED = ("compile_s", "was_cached", "kernel", "launch", "impl", "op", "arch")


def compare_page(revision: str, before: Sequence[Told], after: Sequence[Told]) -> Sheet:
    """Return the page that shows kernels of two revisions side by side.

    Args:
        revision: name of the other revision.
        before: its kernels, as `epbench asm --json` tells them.
        after: those of the files here.
    """
    there, here = ({_key(kernel): kernel for kernel in kernels} for kernels in (before, after))
    both = [key for key in here if key in there]
    tables: list[Table] = []
    for arch, found in groupby(both, lambda key: key[-1]):
        keys = list(found)
        tables.append(
            Table(
                title=f"{arch}: {revision} -> here",
                names=(*_NAMES, *(name for name, _, _ in _MAIN.values())),
                units=(*("" for _ in _NAMES), *(unit for _, unit, _ in _MAIN.values())),
                rows=tuple((*_labels(key), *_cells(there[key], here[key])) for key in keys),
            )
        )
        changes = [
            (*_labels(key), *change) for key in keys for change in changes_of(there[key], here[key])
        ]
        tables.append(
            Table(
                title=f"{arch}: what differs",
                names=(*_NAMES, "figure", revision, "here", "change"),
                units=("",) * (len(_NAMES) + 4),
                rows=tuple(changes),
                notes=() if changes else ("nothing",),
            )
        )
    footer = [
        *(f"only at {revision}: {' '.join(key)}" for key in there if key not in here),
        *(f"only here: {' '.join(key)}" for key in here if key not in there),
    ]
    heading = f"COMPILED, not run: {revision} against the files here"
    return Sheet((heading,), tuple(tables), tuple(footer))


def changes_of(before: Told, after: Told) -> list[tuple[str, str, str, str]]:
    """Return the figures in which a kernel differs: name, before, after and by how much."""
    there, here = dict(_flat(before)), dict(_flat(after))
    return [
        (
            name,
            _shown(there.get(name)),
            _shown(here.get(name)),
            _change(there.get(name), here.get(name)),
        )
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]


def _key(kernel: Told) -> tuple[str, ...]:
    """Return what names a kernel; a file of one's own is the same wherever it lies."""
    name = kernel["kernel"].partition(" ")[0]
    return (name, kernel["op"], str(kernel.get("launch")), kernel["impl"], kernel["arch"])


def _labels(key: tuple[str, ...]) -> tuple[str, str, str]:
    kernel, _, launch, impl, _ = key
    return kernel, launch, impl


def _cells(before: Told, after: Told) -> Iterator[str]:
    for field, (_, _, digits) in _MAIN.items():
        there, here = (_shown(kernel.get(field), digits) for kernel in (before, after))
        yield here if there == here else f"{there} -> {here}"


def _flat(told: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Iterate over the figures of a kernel by dotted names."""
    if isinstance(told, Mapping):
        parts = [(key, value) for key, value in told.items() if name or key not in _IGNORED]
    elif isinstance(told, list):
        parts = [(f"{each['mechanism']}.{each['moves']}", each) for each in told]
    else:
        yield name, told
        return
    for key, value in parts:
        yield from _flat(value, f"{name}.{key}" if name else key)


def _shown(value: object, digits: int = 2) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return "-" if value is None else str(value)


def _change(before: object, after: object) -> str:
    if isinstance(before, int | float) and isinstance(after, int | float) and before:
        return f"{100 * (after - before) / before:+.0f} %"
    return ""
