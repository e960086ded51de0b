"""Loops of a function, from its branches.

Blocks are joined by branches and by falling through; a loop is a strongly connected set of blocks,
and the loops inside it are those that are left when it is entered no more. That finds loops whose
blocks lie anywhere in the code, where a backward branch alone would also be a return from code that
the compiler moved to the end. A call is followed, but what it calls belongs to no loop around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.asm.sass import Instruction

_BRANCHES = ("BRA", "JMP", "BRAU", "JMPU")
#: Branches to one of several places, which the code does not name.
_TO_ANYWHERE = ("BRX", "JMX", "BRXU", "JMXU")
#: Opcodes after which the next instruction is not executed.
_ENDS = ("EXIT", "RET", "KILL", *_TO_ANYWHERE)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop.

    Attributes:
        instructions: all of it, the first block that is entered first, then in the order of the
            code and round.
        inner: the loops inside it.
    """

    instructions: tuple[Instruction, ...]
    inner: tuple[Loop, ...]


def find_loops(code: Sequence[Instruction]) -> tuple[Loop, ...]:
    """Return the outermost loops of a function, in order of their addresses."""
    blocks = _blocks(code)
    nexts = _nexts(code, blocks)
    reached = _reached(code, blocks, nexts)
    return tuple(_loops(reached, {block: nexts[block] for block in reached}, blocks))


def in_step(code: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """Return what a function executes where the lanes of a warp are in step.

    For warps whose lanes are not, compilers put second copies of some code at the end.
    """
    blocks = _blocks(code)
    reached = _reached(code, blocks, _nexts(code, blocks))
    return tuple(each for block in sorted(reached) for each in blocks[block])


def walk(loops: Iterable[Loop]) -> Iterator[Loop]:
    """Iterate over loops and all that are inside them."""
    for loop in loops:
        yield loop
        yield from walk(loop.inner)


def _reached(
    code: Sequence[Instruction],
    blocks: Mapping[int, tuple[Instruction, ...]],
    nexts: Mapping[int, tuple[int, ...]],
) -> set[int]:
    """Return the blocks that are reached from the first one."""
    begins = set(blocks) if any(each.name in _TO_ANYWHERE for each in code) else {min(blocks)}
    reached: set[int] = set()
    for begin in sorted(begins):
        _visit(begin, set(blocks), nexts, reached, [])
    return reached


def _target(instruction: Instruction) -> int | None:
    """Return the address that a branch or call goes to, None where it names none.

    Two branches are left out: `BRA.DIV` goes to a second copy of the code, for warps whose lanes
    are not in step, and `BRA.U.ANY` back for the lanes that have not had their turn yet.
    `BRA.CONV` is the reverse of the first and always goes.
    """
    if instruction.name not in (*_BRANCHES, "CALL") or not instruction.operands:
        return None
    if instruction.opcode.endswith((".DIV", ".U.ANY")):
        return None
    last = instruction.operands[-1]
    return int(last, 16) if last.startswith("0x") else None


def _goes_on(instruction: Instruction) -> bool:
    """Return whether the next instruction may be executed after this one."""
    if instruction.predicate is not None:
        return True
    if instruction.opcode.endswith(".CONV"):
        return False
    if instruction.name in _BRANCHES:
        # Those with modifiers, or a predicate among their operands, depend on something.
        return bool(instruction.modifiers) or len(instruction.operands) > 1
    return instruction.name not in _ENDS


def _blocks(code: Sequence[Instruction]) -> dict[int, tuple[Instruction, ...]]:
    """Return basic blocks by the address of their first instruction."""
    places = {instruction.address: place for place, instruction in enumerate(code)}
    firsts = {0}
    for place, instruction in enumerate(code):
        target = _target(instruction)
        if target is not None:
            firsts.add(places.get(target, 0))
        if target is not None or not _goes_on(instruction) or instruction.name == "BSYNC":
            firsts.add(place + 1)
    ordered = sorted(first for first in firsts if first < len(code))
    ends = [*ordered[1:], len(code)]
    return {
        code[first].address: tuple(code[first:end])
        for first, end in zip(ordered, ends, strict=True)
    }


def _nexts(
    code: Sequence[Instruction], blocks: Mapping[int, tuple[Instruction, ...]]
) -> dict[int, tuple[int, ...]]:
    """Return where each block may go on."""
    meetings = _meetings(code)
    order = sorted(blocks)
    after = dict(zip(order, order[1:], strict=False))
    nexts = {}
    for address, block in blocks.items():
        last = block[-1]
        places = [_target(last), meetings.get(last.address)]
        if _goes_on(last) and last.address not in meetings:
            places.append(after.get(address))
        nexts[address] = tuple(place for place in blocks if place in places)
    return nexts


def _meetings(code: Sequence[Instruction]) -> dict[int, int]:
    """Return where lanes go on that have met, by the address of the BSYNC that is not just there.

    `BSSY B, place` says where those meet that `BSYNC B` waits for.
    """
    places: dict[str, int] = {}
    found = {}
    for here, after in zip(code, code[1:], strict=False):
        if here.name == "BSSY" and here.operands[-1].startswith("0x"):
            places[here.operands[0]] = int(here.operands[-1], 16)
        if here.name == "BSYNC" and here.predicate is None and here.operands:
            place = places.get(here.operands[0])
            if place is not None and place not in (here.address, after.address):
                found[here.address] = place
    return found


def _loops(
    within: set[int],
    nexts: Mapping[int, tuple[int, ...]],
    blocks: Mapping[int, tuple[Instruction, ...]],
) -> Iterator[Loop]:
    """Yield the loops of some blocks, each with those inside it."""
    for members in _components(within, nexts):
        if len(members) == 1 and not members & set(nexts[min(members)]):
            continue
        entered = {
            place
            for block, places in nexts.items()
            if block not in members
            for place in places
            if place in members
        } or {min(members)}
        kept = {
            block: tuple(place for place in nexts[block] if place not in entered)
            for block in members
        }
        first = min(entered)
        order = sorted(members, key=lambda block: (block < first, block))
        yield Loop(
            tuple(instruction for block in order for instruction in blocks[block]),
            tuple(_loops(members, kept, blocks)),
        )


def _components(within: set[int], nexts: Mapping[int, tuple[int, ...]]) -> list[set[int]]:
    """Return the strongly connected components of some blocks, by their lowest addresses."""
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(within):
        _visit(root, within, nexts, seen, order)
    backwards: dict[int, list[int]] = {block: [] for block in within}
    for block in within:
        for place in nexts[block]:
            if place in within:
                backwards[place].append(block)
    components = []
    taken: set[int] = set()
    for root in reversed(order):
        if root not in taken:
            members: list[int] = []
            _visit(root, within, backwards, taken, members)
            components.append(set(members))
    return sorted(components, key=min)


def _visit(
    root: int,
    within: set[int],
    nexts: Mapping[int, Sequence[int]],
    seen: set[int],
    order: list[int],
) -> None:
    """Append blocks that are reached from `root` and not seen yet, each after those beyond it."""
    if root in seen:
        return
    seen.add(root)
    path = [(root, iter(nexts[root]))]
    while path:
        block, rest = path[-1]
        for place in rest:
            if place in within and place not in seen:
                seen.add(place)
                path.append((place, iter(nexts[place])))
                break
        else:
            order.append(block)
            path.pop()
