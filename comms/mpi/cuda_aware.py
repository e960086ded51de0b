"""Whether the MPI library takes addresses of a GPU's memory (CUDA-aware), as it says itself."""

from __future__ import annotations

import ctypes
from typing import Any

#: MPICH's name of CUDA among the kinds of GPUs.
_MPICH_CUDA = 0


def cuda_support(library: Any = None) -> bool | None:  # noqa: ANN401
    """Return what the library says of itself, None where it says nothing; MPI must have started.

    Open MPI has a call that is true where it was built for CUDA and finds it now. MPICH and its kin
    have another, which is asked first: their releases of the first one's name abort the process.

    Args:
        library: what has the library's symbols, None for that of mpi4py.
    """
    if library is None:
        from mpi4py import MPI

        library = ctypes.CDLL(MPI.__file__)
    found = ctypes.c_int(0)
    if ask := _symbol(library, "MPIX_GPU_query_support"):
        failed = ask(ctypes.c_int(_MPICH_CUDA), ctypes.byref(found))
        return None if failed else bool(found.value)
    if ask := _symbol(library, "MPIX_Query_cuda_support"):
        return bool(ask())
    return None


def refuse_host_only(name: str, library: Any = None) -> str | None:  # noqa: ANN401
    """Return why MPI cannot carry a GPU's memory, None where it can.

    Args:
        name: the library's name and version.
        library: as in `cuda_support`.
    """
    support = cuda_support(library)
    if support:
        return None
    says = "is not CUDA-aware" if support is False else "does not say whether it is CUDA-aware"
    return (
        f"{name} {says}, so it cannot be given a GPU's memory: use an MPI that is (Open MPI built "
        "with --with-cuda; Cray MPICH with MPICH_GPU_SUPPORT_ENABLED=1), or kernel nccl"
    )


def _symbol(library: Any, name: str) -> Any:  # noqa: ANN401
    """Return a function of the library, None where it has none of this name."""
    try:
        return getattr(library, name)
    except AttributeError:
        return None
