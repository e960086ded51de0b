"""Where compiled code is kept: a folder named by everything it was made from.

Numba's own cache looks neither at callees in other files nor at globals, so its folder's name
carries a hash of all sources of the project and of the versions that compile them.
"""

import hashlib
import platform
import shutil
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numba

from comms.errors import UsageError

_ROOT = Path(__file__).resolve().parent.parent
#: Folders of earlier sources that are kept, so that switching branches does not compile again.
_KEPT = 8


@cache
def use_cache(extra_sources: tuple[Path, ...] = ()) -> Path:
    """Point Numba's cache at the folder of these sources; call before anything is compiled.

    Args:
        extra_sources: kernel files outside of the project.

    Raises:
        UsageError: the folder cannot be written.
    """
    digest = hashlib.sha256()
    sources = sorted(_ROOT.glob("comms/**/*.py")) + sorted(_ROOT.glob("kernels/**/*.py"))
    for path in [*sources, *extra_sources]:
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(version(package).encode())
    digest.update(f"{sys.version_info[:3]} {platform.machine()}".encode())
    base = _ROOT / ".cache"
    folder = base / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "used").touch()
    except OSError as error:
        raise UsageError(
            f"compiled kernels are kept in {base}, which cannot be written ({error.strerror}); "
            "make it writable or run from a clone of your own"
        ) from error
    for old in sorted(base.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    numba.config.CACHE_DIR = str(folder)
    return folder


#: Compiles a function that only compiled code calls. Division by zero is the caller's to exclude.
inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
