"""Where the functions of a cubin begin, from its symbol table, which is that of any ELF file."""

from __future__ import annotations

import struct

from comms.errors import RuntimeFailure

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2
_FUNCTION = 2


def function_addresses(cubin: bytes) -> dict[str, int]:
    """Return the bytes from the start of its section to each function, by its symbol.

    Raises:
        RuntimeFailure: it is no cubin.
    """
    try:
        (sections_at,) = struct.unpack_from("<Q", cubin, 0x28)
        size, number = struct.unpack_from("<HH", cubin, 0x3A)
        sections = [
            _SECTION.unpack_from(cubin, sections_at + size * place) for place in range(number)
        ]
        found = {}
        for _, kind, _, _, begin, num_bytes, link, *_ in sections:
            if kind != _SYMBOL_TABLE:
                continue
            names_at = sections[link][4]
            for at in range(begin, begin + num_bytes, _SYMBOL.size):
                name, info, _, _, address, _ = _SYMBOL.unpack_from(cubin, at)
                if info & 0xF == _FUNCTION:
                    end = cubin.index(b"\0", names_at + name)
                    found[cubin[names_at + name : end].decode()] = address
    except (struct.error, ValueError, IndexError) as error:
        raise RuntimeFailure(f"a compiled kernel is no cubin: {error}") from error
    return found
