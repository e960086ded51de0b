"""The page of compiled kernels: four tables for each architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from bench.asm.accesses import KINDS
from bench.asm.report import Examined, KernelReport, RowLoop
from bench.pages.tables import Sheet, Table

_NAMES = ("kernel/variant", "launch", "impl")
_KIB = 1024
_ROWS_NOTES = (
    "instr: instructions of the loop that moves rows, for 16 bytes of each lane; N/A where the "
    "code does not say how many bytes a pass moves",
    "in flight: bytes that an SM has under way where all warps of its block are in that loop "
    "(ldst: loads before the first use of one; bulk: stages in shared memory)",
    "needed: by Little's law, rate x latency of the fabric's constants; rate is an SM's share of "
    "NVLink's payload and at most its copy rate",
)
_ACCESS_NOTES = (
    "instructions x bits of a lane; LDG and STG with those by generic addresses. 128-bit: share of "
    "128 bits and more among loads and stores of global memory that are not flags; what bulk "
    "copies move is in neither",
)

Column = tuple[str, str, Callable[[KernelReport], str]]


def asm_page(examined: Examined, *, shows_times: bool = True) -> Sheet:
    """Return the page of compiled kernels.

    Args:
        examined: what was compiled.
        shows_times: whether compile times are shown, which no two runs share.
    """
    tables: list[Table] = []
    for arch, found in groupby(examined.kernels, lambda kernel: kernel.arch):
        kernels = list(found)
        tables += [
            _resources(arch, kernels, examined.limits, shows_times=shows_times),
            _rows(arch, kernels),
            _table(f"{arch}: accesses", kernels, _accesses(kernels), _ACCESS_NOTES),
            _table(f"{arch}: order", kernels, _ORDER, ()),
        ]
    footer = [
        f"not compiled: {each.kernel} {each.launch} {each.arch}: {each.reason}"
        for each in examined.skipped
    ]
    return Sheet(
        ("COMPILED, not run: what machine code says before any GPU does",),
        tuple(tables),
        tuple(footer),
    )


def _table(
    title: str, kernels: Sequence[KernelReport], columns: Sequence[Column], notes: tuple[str, ...]
) -> Table:
    return Table(
        title=title,
        names=(*_NAMES, *(name for name, _, _ in columns)),
        units=(*("" for _ in _NAMES), *(unit for _, unit, _ in columns)),
        rows=tuple(
            (*_labels(kernel), *(cell(kernel) for _, _, cell in columns)) for kernel in kernels
        ),
        notes=notes,
    )


def _resources(
    arch: str, kernels: Sequence[KernelReport], limits: str, *, shows_times: bool
) -> Table:
    times: list[Column] = [("compile", "(s)", lambda kernel: f"{kernel.compile_s:.2f}")]
    return _table(
        f"{arch}: resources", kernels, [*_RESOURCES, *(times if shows_times else [])], (limits,)
    )


def _rows(arch: str, kernels: Sequence[KernelReport]) -> Table:
    columns = (
        "by",
        "moves",
        "instr",
        "loop",
        "in flight",
        "needed",
        "of needed",
        "rate",
        "latency",
    )
    units = ("", "", "(per 16 B)", "(instr)", "(KiB)", "(KiB)", "(%)", "(GB/s)", "(ns)")
    return Table(
        title=f"{arch}: loops that move rows",
        names=(*_NAMES, *columns),
        units=(*("" for _ in _NAMES), *units),
        rows=tuple(
            (*_labels(kernel), *_loop_cells(loop)) for kernel in kernels for loop in kernel.loops
        ),
        notes=_ROWS_NOTES,
    )


def _loop_cells(loop: RowLoop) -> tuple[str, ...]:
    needed = loop.bytes_needed
    return (
        loop.mechanism,
        loop.moves,
        number(loop.instructions_per_16b, 2),
        str(loop.num_instructions),
        number(loop.bytes_in_flight / _KIB, 1),
        number(needed and needed / _KIB, 1),
        number(100 * loop.bytes_in_flight / needed if needed else None, 0),
        number(loop.rate_gbs, 1),
        number(loop.latency_ns, 0),
    )


def _labels(kernel: KernelReport) -> tuple[str, str, str]:
    return kernel.kernel, kernel.launch, kernel.impl


def _accesses(kernels: Sequence[KernelReport]) -> list[Column]:
    kinds = [kind for kind in KINDS if any(kind in kernel.widths for kernel in kernels)]

    def widths(kind: str) -> Callable[[KernelReport], str]:
        return lambda kernel: (
            " ".join(f"{n}x{bits}" for bits, n in kernel.widths.get(kind, {}).items()) or "-"
        )

    share: Column = ("128-bit", "(%)", lambda kernel: percent(kernel.share_128))
    return [*((kind, "", widths(kind)) for kind in kinds), share]


def number(value: float | None, digits: int) -> str:
    """Return a number as a cell."""
    return "N/A" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share as a cell in percent."""
    return number(None if share is None else 100 * share, 0)


def total(counts: Mapping[str, int], begin: str, end: str = "") -> int:
    """Return how many of the counted have a name that begins and ends so."""
    return sum(
        counted for name, counted in counts.items() if name.startswith(begin) and name.endswith(end)
    )


_RESOURCES: tuple[Column, ...] = (
    ("block", "(warps)", lambda kernel: str(kernel.num_warps)),
    ("registers", "", lambda kernel: str(kernel.registers)),
    ("spill", "(bytes)", lambda kernel: str(kernel.spill_bytes)),
    ("static", "(bytes)", lambda kernel: str(kernel.static_shared_bytes)),
    ("dynamic", "(bytes)", lambda kernel: str(kernel.dynamic_shared_bytes)),
    ("blocks", "(per SM)", lambda kernel: str(kernel.blocks_per_sm)),
    ("warps", "(per SM)", lambda kernel: str(kernel.warps_per_sm)),
    ("bound by", "", lambda kernel: kernel.bound_by),
    ("instructions", "", lambda kernel: str(kernel.num_instructions)),
)


def _counted(field: str, begin: str, end: str = "") -> Callable[[KernelReport], str]:
    return lambda kernel: str(total(getattr(kernel, field), begin, end))


_ORDER: tuple[Column, ...] = (
    ("MEMBAR", "SYS", _counted("fences", "MEMBAR", ".SYS")),
    ("MEMBAR", "GPU", _counted("fences", "MEMBAR", ".GPU")),
    ("MEMBAR", "CTA", _counted("fences", "MEMBAR", ".CTA")),
    ("ERRBAR", "", _counted("fences", "ERRBAR")),
    ("CCTL", "IVALL", _counted("fences", "CCTL.IVALL")),
    ("FENCE.VIEW", "ASYNC", _counted("fences", "FENCE.VIEW.ASYNC")),
    ("LD.STRONG", "SYS", _counted("strong", "LD", ".SYS")),
    ("LD.STRONG", "GPU", _counted("strong", "LD", ".GPU")),
    ("ST.STRONG", "SYS", _counted("strong", "ST", ".SYS")),
    ("ST.STRONG", "GPU", _counted("strong", "ST", ".GPU")),
    ("ATOM+RED", "", lambda kernel: str(_reductions(kernel))),
    ("UBLKCP", "", _counted("bulk", "UBLKCP")),
    ("SYNCS", "", _counted("mbarriers", "")),
    ("BAR", "", _counted("barriers", "BAR")),
    ("WARPSYNC", "", _counted("barriers", "WARPSYNC")),
)


def _reductions(kernel: KernelReport) -> int:
    return sum(sum(kernel.widths.get(kind, {}).values()) for kind in ("ATOM", "RED"))
