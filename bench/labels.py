"""What kernels are called on pages and in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.records.record import Case


def kernel_label(kernel: str, variant: str, path: str | None, impl: str = "numba") -> str:
    """Return kernel and variant, with what tells them from others of that name.

    Args:
        kernel: its name.
        variant: the variant's.
        path: the file that they are from if it is not the repository's.
        impl: what they are made of; CUDA C++ is named.
    """
    made = " (cupy)" if impl == "cupy" else ""
    return f"{kernel}/{variant}{made}" + (f" {path}" if path else "")


def label_of(case: Case) -> str:
    """Return the label of a case's kernel."""
    path = case.source.path if case.source else None
    return kernel_label(case.kernel, case.variant, path, case.impl)
