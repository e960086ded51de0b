"""Machine code as instructions, and what functions use, from what the binary utilities print.

Instructions come from `nvdisasm --emit-json` and not from its listing: there opcode, predicate and
operands are fields, and branches name addresses instead of labels. Registers and memory come from
`cuobjdump -res-usage`, which is documented; the same facts in the file's `.nv.info` are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from comms.errors import RuntimeFailure

_RESOURCES = re.compile(r"^ Function (?P<name>\S+):\n\s+(?P<fields>\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        address: bytes from the start of its function.
        opcode: with modifiers, for example `LDG.E.128.STRONG.SYS`.
        operands: as printed, destinations first.
        predicate: for example `@!P0`, None where it always executes.
    """

    address: int
    opcode: str
    operands: tuple[str, ...] = ()
    predicate: str | None = None

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """What follows the opcode's name."""
        return tuple(self.opcode.split(".")[1:])


@dataclass(frozen=True, slots=True)
class Resources:
    """What one function uses.

    Attributes:
        registers: of a thread.
        stack_bytes: local memory of a thread on its stack, spilled registers among it.
        local_bytes: other local memory of a thread.
        shared_bytes: static shared memory of a block as reported: from compute capability 9.0 on
            with what the system takes, 1 KiB.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int


def read_instructions(
    text: str, addresses: Mapping[str, int] = MappingProxyType({})
) -> dict[str, tuple[Instruction, ...]]:
    """Return the instructions of each kernel with the functions it calls, by its symbol.

    Args:
        text: what `nvdisasm --emit-json` prints of a cubin.
        addresses: where functions begin, which calls name by their symbols.

    Raises:
        RuntimeFailure: it is in another form.
    """
    try:
        functions = json.loads(text)[1]
        return {each["function-name"]: _function(each, addresses) for each in functions}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RuntimeFailure(
            f"what nvdisasm --emit-json prints is not what epbench knows "
            f"({type(error).__name__}: {error}); nvidia-cuda-nvdisasm 13 is known to work"
        ) from error


def _function(function: Mapping[str, Any], addresses: Mapping[str, int]) -> tuple[Instruction, ...]:
    told = function["sass-instructions"]
    size = function["length"] // max(len(told), 1)
    return tuple(
        Instruction(
            place * size,
            each["opcode"],
            tuple(_operands(each.get("operands", ""), addresses)),
            each.get("predicate"),
        )
        for place, each in enumerate(told)
    )


def _operands(text: str, addresses: Mapping[str, int]) -> Iterator[str]:
    for operand in text.split(",") if text else ():
        yield hex(addresses[operand]) if operand in addresses else operand


def read_resources(text: str) -> dict[str, Resources]:
    """Return what each function uses, by its symbol.

    Args:
        text: what `cuobjdump -res-usage` prints of a cubin.

    Raises:
        RuntimeFailure: it is in another form.
    """
    found = {}
    for match in _RESOURCES.finditer(text):
        fields = dict(field.rsplit(":", 1) for field in match["fields"].split())
        try:
            used = [int(fields[name]) for name in ("REG", "STACK", "LOCAL", "SHARED")]
        except (KeyError, ValueError) as error:
            raise RuntimeFailure(
                f"what cuobjdump -res-usage prints is not what epbench knows: {match['fields']!r}; "
                "nvidia-cuda-cuobjdump 13 is known to work"
            ) from error
        found[match["name"]] = Resources(*used)
    return found
