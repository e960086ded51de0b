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


def use_cache(extra_sources: tuple[Path, ...] = ()) -> Path:
    """Point Numba's cache at the folder of these sources; call before anything is compiled.

    Args:
        extra_sources: kernel files outside of the project.

    Raises:
        UsageError: the folder cannot be written.
    """
    folder = _folder(extra_sources)
    numba.config.CACHE_DIR = str(folder)
    return folder


@cache
def _folder(extra_sources: tuple[Path, ...]) -> Path:
    digest = hashlib.sha256()
    sources = {*_ROOT.glob("comms/**/*.py"), *_ROOT.glob("kernels/**/*.py")}
    outside = {path.resolve() for path in extra_sources} - sources
    for path in [*sorted(sources), *sorted(outside)]:
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
    for old in sorted(base.iterdir(), key=_last_used, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _last_used(folder: Path) -> float:
    used = folder / "used"
    return (used if used.exists() else folder).stat().st_mtime


#: Compiles a function that only compiled code calls. Division by zero is the caller's to exclude.
inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
