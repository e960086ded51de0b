"""Compiled kernels on the disk, by everything that they were made from."""

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from comms.compiling import ROOT, keep_folder, outside_of_project
from comms.cuda.toolchain import versions
from comms.sources import digest_of

#: Threads of a warp.
LANES = 32


@dataclass(frozen=True, slots=True)
class Cubin:
    """A kernel's machine code.

    Attributes:
        name: the launch's name.
        arch: what it runs on, for example `sm_90`.
        code: the file's content.
        entry: symbol of the kernel.
        num_threads: threads of a block, at most and exactly.
        shared_bytes: dynamic shared memory that a launch must give.
        compile_s: seconds that it took to make.
        path: where it is kept.
        was_cached: whether it was found there.
    """

    name: str
    arch: str
    code: bytes
    entry: str
    num_threads: int
    shared_bytes: int
    compile_s: float = 0.0
    path: Path = field(default=Path())
    was_cached: bool = False


def kept(sources: Sequence[Path], options: Sequence[Any], build: Callable[[], Cubin]) -> Cubin:
    """Return a kernel from the disk, or build it and keep it there.

    Args:
        sources: the kernel's own files; those of the project count in any case.
        options: what else decides about the code.
        build: makes it.

    Raises:
        UsageError: the cache cannot be written.
        RuntimeFailure: the compilers are missing.
    """
    outside = outside_of_project(sources)
    folder = keep_folder(ROOT / ".cache", f"cuda-{_project_digest()}")
    name = hashlib.sha256(repr((*options, digest_of(outside))).encode()).hexdigest()[:16]
    path = folder / f"{options[0]}-{name}.cubin"
    facts = path.with_suffix(".json")
    if path.exists() and facts.exists():
        found = msgspec.json.decode(facts.read_bytes(), type=_Facts)
        return Cubin(
            code=path.read_bytes(), path=path, was_cached=True, **msgspec.structs.asdict(found)
        )
    begun = time.monotonic()
    made = build()
    made = replace(made, path=path, compile_s=time.monotonic() - begun)
    _write(path, made.code)
    _write(facts, msgspec.json.encode(_facts_of(made)))
    return made


class _Facts(msgspec.Struct, frozen=True):
    name: str
    arch: str
    entry: str
    num_threads: int
    shared_bytes: int
    compile_s: float


def _facts_of(cubin: Cubin) -> _Facts:
    return _Facts(**{name: getattr(cubin, name) for name in _Facts.__struct_fields__})


def _write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    # Processes of several hosts, which may share this disk, may have one number.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    part.write_bytes(content)
    part.replace(path)


@cache
def _project_digest() -> str:
    digest = hashlib.sha256(repr(sorted(versions().items())).encode())
    for pattern in ("comms/cuda/toolchain.py", "kernels/**/*.py", "kernels/**/*.cu*"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
