"""Where compiled code is kept: a folder named by everything it was made from.

Numba's own cache looks neither at callees in other files nor at globals, so its folder's name
carries a hash of all sources of the project and of the versions that compile them. The code of
kernels outside of the project is kept in folders inside of that one, so that changing such a kernel
leaves the project's own code where it is.
"""

import hashlib
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numba

from comms.errors import UsageError
from comms.parts import kept_part
from comms.sources import digest_of

F = TypeVar("F", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parent.parent
#: Folders of earlier sources that are kept, so that switching branches does not compile again.
_KEPT = 12


def use_cache(extra_sources: tuple[Path, ...] = ()) -> Path:
    """Point Numba's cache at the folder of these sources; call before anything is compiled.

    Args:
        extra_sources: kernel files outside of the project; what they import beside them counts.

    Raises:
        UsageError: the folder cannot be written.
    """
    folder = _project_folder()
    outside = outside_of_project(extra_sources)
    if outside:
        folder = keep_folder(folder / "outside", digest_of(outside))
    numba.config.CACHE_DIR = str(folder)
    return folder


def outside_of_project(sources: Sequence[Path]) -> list[Path]:
    """Return the files that are none of the project's own."""
    return [path for path in sources if path.resolve() not in _project_sources()]


@cache
def _project_sources() -> frozenset[Path]:
    """Return the project's files; examples are for trying things and count as outside."""
    found = {*ROOT.glob("comms/**/*.py"), *ROOT.glob("kernels/**/*.py")}
    return frozenset(found - {*ROOT.glob("kernels/examples/*.py")})


@cache
def _project_folder() -> Path:
    digest = hashlib.sha256()
    for path in sorted(_project_sources()):
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(version(package).encode())
    digest.update(f"{sys.version_info[:3]} {platform.machine()}".encode())
    return keep_folder(ROOT / ".cache", digest.hexdigest()[:16])


def keep_folder(base: Path, name: str) -> Path:
    """Make a folder and mark it as used; take away those that were used longest ago."""
    folder = base / name
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
    try:
        return (used if used.exists() else folder).stat().st_mtime
    except FileNotFoundError:
        # Another process has taken it away.
        return 0.0


def inner(function: F) -> F:
    """Compile a function that only compiled code calls, and keep it for the next process.

    Division by zero is the caller's to exclude.
    """
    use_cache()
    compiled: F = kept_part(function, error_model="numpy")
    return compiled
