"""GPU code compiled for this machine's CPUs: libraries of kernels, and what runs them.

Everything is kept by its content, in a folder named after the headers and the compiler.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from comms.compiling import ROOT, keep_folder

Sanitizer = Literal["none", "thread", "address"]

ISA = ROOT / "kernels" / "isa"
COMPILER = os.environ.get("CXX", "g++")
#: Floats as a GPU has them: nothing is contracted. Addresses are int64, cast to any type.
_FLAGS = (
    "-O1",
    "-g1",
    "-DEP_HOST",
    "-fmax-errors=5",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
)
_WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas")
_INSTRUMENTED = {
    "none": (),
    "thread": ("-fsanitize=thread", "-DEP_HOST_TSAN"),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
}
_TOLD = {"none": (), "thread": ("-DEP_TSAN",), "address": ("-DEP_ASAN",)}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One passage of a header, which must occur there once, and what replaces it."""

    header: str
    old: str
    new: str


def library(
    source: str,
    kernel_name: str,
    *,
    defines: Sequence[str] = (),
    sanitizer: Sanitizer = "none",
    mutation: Mutation | None = None,
    folder: Path | None = None,
) -> Path:
    """Compile a kernel for the host's lanes, or find it compiled.

    Args:
        source: C++ with includes from `kernels/isa`.
        kernel_name: its `__global__` function, of int64 parameters.
        defines: macros, `NAME` or `NAME=value`.
        sanitizer: what watches it.
        mutation: a mistake to make in a header.
        folder: where it finds includes of its own.

    Raises:
        AssertionError: it does not compile; the compiler's words are the message.
    """
    include = ISA if mutation is None else _mutated(mutation)
    kept, _ = runtime(sanitizer)
    text = f'{source}\n#define EP_KERNEL {kernel_name}\n#include "host/entry.h"\n'
    flags = [
        *("-std=c++17", *_FLAGS, *_WARNINGS, *_INSTRUMENTED[sanitizer]),
        # Most of a mutant's time is its compiler's. ThreadSanitizer does not see copies of structs
        # in code that was not optimised.
        *(["-O0"] if mutation is not None and sanitizer != "thread" else []),
        *(f"-D{define}" for define in defines),
        *(f"-I{path}" for path in (include, folder) if path is not None),
    ]
    own = [] if folder is None else sorted(folder.glob("*.cu*"))
    name = _digest(text, *flags, *(path.read_text() for path in own))
    target = kept / f"{kernel_name}-{name}.so"
    link = ("-shared", "-x", "c++", "-", "-x", "none", str(kept / "libep_host.so"))
    _compile(target, [*flags, *link, f"-Wl,-rpath,{kept}"], text)
    return target


@cache
def runtime(sanitizer: Sanitizer) -> tuple[Path, Path]:
    """Return the folder of what runs kernels under a sanitizer, and the program in it."""
    kept = _folder() / sanitizer
    kept.mkdir(exist_ok=True)
    host = ISA / "host"
    flags = ["-std=c++20", *_FLAGS, *_WARNINGS, *_TOLD[sanitizer]]
    linked = [flag for flag in _INSTRUMENTED[sanitizer] if flag.startswith("-fsanitize")]
    sources = [str(host / f"{name}.cpp") for name in ("fiber", "block", "bulk", "world")]
    objects = []
    # Compiled without the sanitizer and linked with it.
    for source in sources:
        objects.append(str(kept / f"{Path(source).stem}.o"))
        _compile(Path(objects[-1]), [*flags, "-c", source])
    shared = kept / "libep_host.so"
    _compile(shared, ["-shared", "-pthread", *linked, *objects])
    main = kept / "main"
    _compile(kept / "main.o", [*flags, "-c", str(host / "main.cpp")])
    rest = [str(kept / "main.o"), str(shared), "-ldl", f"-Wl,-rpath,{kept}"]
    _compile(main, ["-pthread", *linked, *rest])
    return kept, main


@cache
def _folder() -> Path:
    assert shutil.which(COMPILER), (
        f"{COMPILER} is not found: tests run GPU code compiled by it; install it, or set CXX"
    )
    told = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True)
    headers = [path.read_text() for path in _headers()]
    flags = repr((_FLAGS, _WARNINGS, _INSTRUMENTED, _TOLD))
    return keep_folder(ROOT / ".cache", f"host-{_digest(told.stdout, flags, *headers)}")


def _headers() -> list[Path]:
    return [ISA / "cuda.cuh", *sorted((ISA / "cuh").iterdir()), *sorted((ISA / "host").iterdir())]


def _mutated(mutation: Mutation) -> Path:
    """Return a copy of the headers with a mistake."""
    text = (ISA / mutation.header).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.old!r} must occur once in {mutation.header}"
    folder = _folder() / f"mutant-{_digest(mutation.header, mutation.old, mutation.new)}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        for path in _headers():
            copy = part / path.relative_to(ISA)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (part / mutation.header).write_text(text.replace(mutation.old, mutation.new))
        try:
            part.rename(folder)
        except OSError:
            shutil.rmtree(part)
    return folder


def _compile(target: Path, arguments: Sequence[str], text: str = "") -> None:
    """Run the compiler unless its result is there; a reader sees all of a file or none."""
    if target.exists():
        return
    part = target.with_name(f"{target.name}.{os.getpid()}")
    command = [COMPILER, *arguments, "-o", str(part)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    part.replace(target)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def environment() -> dict[str, str]:
    """Return the environment of a watched program: it reports, goes on, and tells by its code."""
    return {
        **os.environ,
        "TSAN_OPTIONS": "exitcode=66:report_thread_leaks=0:report_signal_unsafe=0",
        "ASAN_OPTIONS": "exitcode=66:detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
