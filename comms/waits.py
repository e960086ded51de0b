"""Sentences about kernels that cannot go on: which warps wait, where and for which flag."""

import zlib
from collections import Counter
from collections.abc import Sequence

#: Kinds of waits that a report names; the rest are counted.
MOST_NAMED = 12
#: A place is a line in its low bits and the tag of its file above them.
_LINE_BITS = 20
#: Files by their tags, as kernels are bound.
_FILES: dict[int, str] = {}


def name_file(module: str, path: str) -> int:
    """Return the tag of a module's file: the same in every process, so that code can be kept."""
    tag = zlib.crc32(module.encode())
    _FILES[tag] = path
    return tag


def place_of(tag: int, line: int) -> int:
    """Return the place that compiled code carries for a line of a file."""
    return tag << _LINE_BITS | line


def describe_place(place: int) -> str:
    """Return `path:line` of a place."""
    path = _FILES.get(place >> _LINE_BITS, "")
    return f"{path}:{place & (1 << _LINE_BITS) - 1}"


def describe_waits(cause: str, waits: Sequence[tuple[str, str]]) -> str:
    """Return a report of blocked warps, those that wait for the same thing in one line.

    Args:
        cause: what happened, for example "deadlock at 3.0 us of virtual time".
        waits: where each blocked warp is and what it waits for.
    """
    seen_at: Counter[str] = Counter(what for _, what in waits)
    named: list[str] = []
    for what, count in seen_at.most_common(MOST_NAMED):
        first_where = next(where for where, other in waits if other == what)
        others = f" and {count - 1} more like it" if count > 1 else ""
        named.append(f"  {first_where}{others}: {what}")
    rest = len(seen_at) - len(named)
    more = [f"  and {rest} other waits"] if rest > 0 else []
    return "\n".join([f"{cause}; {len(waits)} warps are blocked:", *named, *more])


def describe_flag(line: str, flag: str, value: int, seen: int) -> str:
    """Return what a warp waits for at a source line."""
    return f"{line} waits for {flag} >= {value}, sees {seen}"
