"""Sentences about kernels that cannot go on: which warps wait, where and for which flag."""

from collections import Counter
from collections.abc import Sequence

#: Kinds of waits that a report names; the rest are counted.
MOST_NAMED = 12


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
