"""What kernels are called on pages and in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.records.record import Case


def kernel_label(kernel: str, variant: str, path: str | None) -> str:
    """Return kernel and variant, with the file that they are from if it is not the repository's."""
    return f"{kernel}/{variant}" + (f" {path}" if path else "")


def label_of(case: Case) -> str:
    """Return the label of a case's kernel."""
    return kernel_label(case.kernel, case.variant, case.source.path if case.source else None)
