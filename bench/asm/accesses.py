"""What instructions do to memory: how wide accesses are, and what orders them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.asm.sass import Instruction

#: Loads and stores of global memory; those by generic addresses among them, which rows have.
GLOBAL_LOADS = ("LDG", "LD", "LDGSTS")
GLOBAL_STORES = ("STG", "ST")
#: Bits that a row instruction should move for a lane.
ROW_BITS = 128

#: Opcodes of each kind of access, as the table names them.
KINDS: Mapping[str, tuple[str, ...]] = {
    "LDG": GLOBAL_LOADS,
    "STG": GLOBAL_STORES,
    "LDS": ("LDS",),
    "STS": ("STS",),
    "LDL": ("LDL",),
    "STL": ("STL",),
    "ATOM": ("ATOM", "ATOMG", "ATOMS"),
    "RED": ("RED", "REDG"),
}
_BITS = {
    **dict.fromkeys(("U8", "S8"), 8),
    **dict.fromkeys(("U16", "S16", "F16"), 16),
    **dict.fromkeys(("64", "F64"), 64),
    "128": 128,
    "256": 256,
}
_FENCES = ("MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "FENCE")
_BARRIERS = ("BAR", "WARPSYNC", "UCGABAR_ARV", "UCGABAR_WAIT")


@dataclass(frozen=True, slots=True)
class Accesses:
    """Instructions of one function by what they do to memory; every one counts once.

    Attributes:
        widths: kind of access to bits of a lane to instructions.
        share_128: share of those of 128 bits and more among loads and stores of global memory that
            order nothing; None where there are none.
        num_read_only: loads of global memory through the read-only path, which need not see what
            others write while the kernel runs.
        fences: instructions that order accesses, by opcode: `MEMBAR.SC.SYS`, `CCTL.IVALL`, ...
        strong: accesses that others see at once, as flags need: `LDG.STRONG.SYS`, ...
        bulk: instructions of the bulk copy engine, by opcode.
        mbarriers: instructions of barriers in shared memory, by opcode.
        barriers: instructions that wait for warps or lanes, by opcode.
    """

    widths: dict[str, dict[int, int]]
    share_128: float | None
    num_read_only: int
    fences: dict[str, int]
    strong: dict[str, int]
    bulk: dict[str, int]
    mbarriers: dict[str, int]
    barriers: dict[str, int]


def count_accesses(code: Iterable[Instruction]) -> Accesses:
    """Return what the instructions of a function do to memory."""
    code = tuple(code)
    widths: dict[str, dict[int, int]] = {}
    for kind, names in KINDS.items():
        found = Counter(bits_of(each) for each in code if each.name in names)
        if found:
            widths[kind] = dict(sorted(found.items()))
    rows = [bits_of(each) for each in code if is_row_access(each)]
    return Accesses(
        widths=widths,
        share_128=sum(bits >= ROW_BITS for bits in rows) / len(rows) if rows else None,
        num_read_only=sum(
            each.name in GLOBAL_LOADS and "CONSTANT" in each.modifiers for each in code
        ),
        fences=_counts(each.opcode for each in code if each.name in _FENCES),
        strong=_counts(
            f"{each.name}.STRONG.{_scope(each)}" for each in code if "STRONG" in each.modifiers
        ),
        bulk=_counts(each.opcode for each in code if each.name.startswith(("UBLK", "UTMA"))),
        mbarriers=_counts(
            each.opcode
            for each in code
            if each.name == "SYNCS" or each.opcode.startswith("ATOMS.ARRIVE")
        ),
        barriers=_counts(
            ".".join((each.name, *each.modifiers[:1])) for each in code if each.name in _BARRIERS
        ),
    )


def bits_of(instruction: Instruction) -> int:
    """Return the bits that a memory instruction moves for a lane."""
    return next((_BITS[each] for each in instruction.modifiers if each in _BITS), 32)


def is_row_access(instruction: Instruction) -> bool:
    """Return whether an instruction loads or stores global memory and orders nothing.

    Flags are strong accesses; rows, ids and tables are not.
    """
    return (
        instruction.name in (*GLOBAL_LOADS, *GLOBAL_STORES)
        and "STRONG" not in instruction.modifiers
    )


def _scope(instruction: Instruction) -> str:
    modifiers = instruction.modifiers
    after = modifiers[modifiers.index("STRONG") + 1 :]
    return next((each for each in after if each in ("CTA", "SM", "GPU", "SYS")), "SYS")


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
