"""The same kernels, compiled by another revision of the project."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comms.errors import RuntimeFailure, UsageError, error_of

_ROOT = Path(__file__).resolve().parents[2]


def kernels_at(revision: str, kernels: Sequence[str], flags: Sequence[str]) -> list[dict[str, Any]]:
    """Return what another revision tells of kernels, as its `epbench asm --json` does.

    Its files are written to a folder that is gone afterwards, and a process of their own compiles
    them; a kernel file of the project is that revision's, any other the one that is there.

    Args:
        revision: any name that git knows.
        kernels: as the user names them.
        flags: of `epbench asm`, without what it prints and `--diff`.

    Raises:
        UsageError: there is no such revision, or it has no `epbench asm` or no such kernel.
        EpbenchError: it ended otherwise.
    """
    with _files_of(revision) as folder:
        if not (folder / "bench" / "asm").is_dir():
            raise UsageError(f"revision {revision} has no `epbench asm`: give a later one")
        names = [_elsewhere(name) for name in kernels]
        paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "bench", "asm", *flags, "--json", "--", *names],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise error_of(done.returncode, f"at {revision}: {lines[-1].removeprefix('epbench: ')}")
    try:
        told: list[dict[str, Any]] = json.loads(done.stdout)["kernels"]
    except (ValueError, KeyError) as error:
        raise RuntimeFailure(f"`epbench asm --json` of {revision} tells no kernels") from error
    return told


@contextmanager
def _files_of(revision: str) -> Iterator[Path]:
    """Write the files of a revision to a folder while the context lasts."""
    # An archive, since a work tree would stay registered if this process were killed.
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise UsageError(f"there is no revision {revision!r} in {_ROOT}")
    archive = _git("archive", "--format=tar", commit.decode().strip())
    if archive is None:
        raise RuntimeFailure(f"git archive of {revision} failed in {_ROOT}")
    with tempfile.TemporaryDirectory(prefix="epbench-asm-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def _git(*args: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, check=True)
    except OSError as error:
        raise UsageError(f"--diff needs git: {error.strerror}") from error
    except subprocess.CalledProcessError:
        return None
    return done.stdout


def _elsewhere(kernel: str) -> str:
    """Return a kernel's name as a process in another folder takes it."""
    path, colon, name = kernel.partition(":")
    if not path.endswith(".py"):
        return kernel
    absolute = Path(path).resolve()
    within = absolute.is_relative_to(_ROOT)
    return f"{absolute.relative_to(_ROOT) if within else absolute}{colon}{name}"
