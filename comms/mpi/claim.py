"""A word of shared memory that one of several processes claims."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache


@cache
def claim() -> Callable[[int, int], int]:
    """Return a compare-and-swap of a word from 0, callable from Python."""
    from numba import njit

    from comms import atomics
    from comms.compiling import use_cache

    use_cache()

    def claim_word(address: int, value: int) -> int:
        was: int = atomics.claim(address, value)
        return was

    compiled: Callable[[int, int], int] = njit("int64(int64, int64)", cache=True)(claim_word)
    return compiled
