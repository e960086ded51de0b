"""What the compiler made of kernels: registers, accesses, fences, and the loop that moves rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.pages.tables import Sheet


def table_of_all(arches: Sequence[str]) -> Sheet:
    """Return the page of every kernel that is compiled for GPUs, with its default knobs.

    It has no compile times, so that the same sources and tools give the same page.

    Args:
        arches: for example `("sm_80", "sm_90")`.

    Raises:
        EpbenchError: an unknown architecture, or the packages that compile are missing.
    """
    from bench.asm.examine import Asked, examine
    from bench.asm.page import asm_page
    from bench.asm.targets import targets_of_all

    examined = examine(Asked(targets_of_all(), tuple(arches), keep_going=True))
    return asm_page(examined, shows_times=False)
