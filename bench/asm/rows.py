"""The loop that moves rows: what it costs, and how many bytes it keeps under way.

Two mechanisms move rows. By `ldst` every lane loads and stores; by `bulk` one lane asks the copy
engine, from global to shared memory or back.

Row loops of `ldst` are those with 128-bit accesses of global memory that have no such loop inside
them. A loop that loads more than it stores sums rows, any other copies them. Of each kind it is the
one with most of these accesses, of equals the one with fewest instructions; one that only loads or
only stores is none, unless nothing else moves rows, as where a row that was loaded goes to several
places. The row loop of `bulk` is likewise the one with most bulk copies. Instructions of a loop
count once each, whichever way its branches go, those of loops inside it too; NOPs do not, nor do
functions that it calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.asm.accesses import GLOBAL_LOADS, GLOBAL_STORES, ROW_BITS, bits_of, is_row_access
from bench.asm.flow import Loop, walk
from bench.asm.sass import Instruction

LANES = 32
#: Bytes of a lane and of a warp for which instructions are counted.
LANE_BYTES = ROW_BITS // 8
WARP_BYTES = LANES * LANE_BYTES
#: Bytes that one unit of a bulk copy's size register stands for.
_BULK_UNIT_BYTES = 16

_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True, slots=True)
class LdstLoop:
    """The loop that moves rows by loads and stores.

    Attributes:
        num_instructions: of the loop.
        num_accesses: of global memory, of 128 bits and more.
        loaded_bytes: what a lane loads from global memory in one pass, flags left out.
        stored_bytes: what it stores there.
        lane_bytes_in_flight: most bytes of loads of 128 bits and more that a lane has under way at
            once: issued, and by no instruction since named. Passes follow each other.
    """

    num_instructions: int
    num_accesses: int
    loaded_bytes: int
    stored_bytes: int
    lane_bytes_in_flight: int

    @property
    def moves(self) -> Literal["copies", "sums"]:
        """Whether rows are copied, or several become one."""
        return "sums" if self.loaded_bytes > self.stored_bytes else "copies"

    @property
    def lane_bytes(self) -> int:
        """What a lane moves in one pass; a copied byte is loaded and stored."""
        return max(self.loaded_bytes, self.stored_bytes)

    @property
    def instructions_per_16b(self) -> float:
        """Instructions that a warp issues for 16 bytes of each lane, which are 512 of the warp."""
        return self.num_instructions * LANE_BYTES / self.lane_bytes


@dataclass(frozen=True, slots=True)
class BulkLoop:
    """The loop that moves rows by bulk copies.

    Attributes:
        num_instructions: of the loop.
        warp_bytes: what a warp moves in one pass: of what it copies to shared memory and from it
            the more; None where the code does not say how much that is.
    """

    num_instructions: int
    warp_bytes: int | None

    @property
    def moves(self) -> Literal["copies"]:
        """Rows are copied."""
        return "copies"

    @property
    def instructions_per_16b(self) -> float | None:
        """Instructions that a warp issues for 512 bytes, 16 for each lane as with `ldst`."""
        if self.warp_bytes is None:
            return None
        return self.num_instructions * WARP_BYTES / self.warp_bytes


def find_ldst_loops(loops: Sequence[Loop], *, has_bulk: bool = False) -> list[LdstLoop]:
    """Return the loops that move rows by loads and stores: at most one that copies and one that
    sums, that with more accesses first.

    Args:
        loops: of the function.
        has_bulk: whether bulk copies move rows there.
    """
    found: dict[str, LdstLoop] = {}
    hottest = _hottest(loops, _is_wide_row_access)
    whole = [loop for loop in hottest if _has(loop, GLOBAL_LOADS) and _has(loop, GLOBAL_STORES)]
    for loop in whole if whole or has_bulk else hottest:
        told = LdstLoop(
            _num_instructions(loop),
            sum(map(_is_wide_row_access, loop.instructions)),
            _lane_bytes(loop.instructions, GLOBAL_LOADS),
            _lane_bytes(loop.instructions, GLOBAL_STORES),
            _most_in_flight(loop.instructions),
        )
        found.setdefault(told.moves, told)
    return list(found.values())


def find_bulk_loop(loops: Sequence[Loop], code: Sequence[Instruction]) -> BulkLoop | None:
    """Return the loop that moves rows by bulk copies, None where there is none.

    Args:
        loops: of the function.
        code: all of the function, which has the sizes of copies.
    """
    hottest = _hottest(loops, is_bulk_copy)
    if not hottest:
        return None
    loop = hottest[0]
    copies = [each for each in loop.instructions if is_bulk_copy(each)]
    sizes = {each: _bulk_bytes(each, code) for each in copies}
    known = [size for size in sizes.values() if size is not None]
    into = sum(size or 0 for each, size in sizes.items() if loads_in_bulk(each))
    moved = max(into, sum(known) - into)
    return BulkLoop(_num_instructions(loop), moved if len(known) == len(copies) else None)


def is_bulk_copy(instruction: Instruction) -> bool:
    """Return whether an instruction copies bytes by the copy engine."""
    return instruction.name == "UBLKCP"


def loads_in_bulk(instruction: Instruction) -> bool:
    """Return whether an instruction copies global memory to shared memory by the copy engine."""
    return is_bulk_copy(instruction) and instruction.modifiers[:2] == ("S", "G")


def _hottest(loops: Sequence[Loop], wanted: Callable[[Instruction], bool]) -> list[Loop]:
    """Return loops with wanted instructions and no such loop inside, those with most first."""
    found = [
        loop
        for loop in walk(loops)
        if any(map(wanted, loop.instructions))
        and not any(wanted(each) for inner in loop.inner for each in inner.instructions)
    ]
    return sorted(found, key=lambda loop: (-sum(map(wanted, loop.instructions)), _size(loop)))


def _is_wide_row_access(instruction: Instruction) -> bool:
    return is_row_access(instruction) and bits_of(instruction) >= ROW_BITS


def _has(loop: Loop, names: Sequence[str]) -> bool:
    return any(each.name in names and _is_wide_row_access(each) for each in loop.instructions)


def _size(loop: Loop) -> tuple[int, int]:
    return _num_instructions(loop), loop.instructions[0].address


def _num_instructions(loop: Loop) -> int:
    return sum(each.name != "NOP" for each in loop.instructions)


def _lane_bytes(code: Iterable[Instruction], names: Sequence[str]) -> int:
    return sum(bits_of(each) // 8 for each in code if each.name in names and is_row_access(each))


def _most_in_flight(code: Sequence[Instruction]) -> int:
    """Return the most bytes of a lane's wide loads that are under way at once.

    An instruction that names a register of a load waits for it. A second pass counts loads that the
    first has left under way.
    """
    under_way: list[tuple[frozenset[int], int]] = []
    most = 0
    for instruction in (*code, *code):
        if instruction.name == "DEPBAR":
            under_way = [(registers, size) for registers, size in under_way if registers]
        named = set(map(int, _REGISTER.findall(",".join(instruction.operands))))
        under_way = [(registers, size) for registers, size in under_way if not registers & named]
        if instruction.name in GLOBAL_LOADS and _is_wide_row_access(instruction):
            bits = bits_of(instruction)
            under_way.append((_loaded(instruction, bits), bits // 8))
            most = max(most, sum(size for _, size in under_way))
    return most


def _loaded(instruction: Instruction, bits: int) -> frozenset[int]:
    """Return the registers that a load writes; a copy into shared memory writes none."""
    match = _REGISTER.fullmatch(instruction.operands[0])
    if instruction.name == "LDGSTS" or match is None:
        return frozenset()
    return frozenset(range(int(match[1]), int(match[1]) + bits // 32))


def _bulk_bytes(copy: Instruction, code: Sequence[Instruction]) -> int | None:
    """Return the bytes of a bulk copy whose size register only ever holds one constant."""
    register = copy.operands[-1]
    before = [
        each
        for each in code
        if each.address < copy.address and each.operands and each.operands[0] == register
    ]
    if not before or before[-1].name != "UMOV" or not before[-1].operands[1].startswith("0x"):
        return None
    return int(before[-1].operands[1], 16) * _BULK_UNIT_BYTES
