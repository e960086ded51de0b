"""The compilers of GPU code, as libraries: NVRTC for C++, nvJitLink for what they all made.

None of them needs a GPU or a driver. NVVM is called by numba-cuda; nvJitLink has to understand what
it and NVRTC wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comms.errors import RuntimeFailure, UsageError

if TYPE_CHECKING:
    from cuda.core import ObjectCode

Target = Literal["cubin", "ptx"]

#: Distributions that compiling needs, by what they are used for; CUDA's own come for either of two
#: majors.
_PACKAGES = ("numba-cuda", "cuda-core", "cuda-bindings")
_REMEDY = "pip install -e '.[cuda-compile]'"
_ARCH = re.compile(r"sm_(\d+)a?$")
#: How compilers begin the line that says what is wrong, and how no name of an error code reads.
_SAYS_ERROR = re.compile(r"\berror\s*:")
#: Least architecture that the instructions compile for.
_LEAST_ARCH = 80


def capability(arch: str) -> tuple[int, int]:
    """Return the compute capability of an architecture, (9, 0) for `sm_90`.

    Raises:
        UsageError: the instruction set is not made for it.
    """
    match = _ARCH.match(arch)
    if match is None or int(match[1]) < _LEAST_ARCH:
        raise UsageError(f"kernels compile for sm_{_LEAST_ARCH} and later, not for {arch!r}")
    return divmod(int(match[1]), 10)


@cache
def versions() -> dict[str, str]:
    """Return the versions of what compiles, by name.

    Raises:
        RuntimeFailure: something is missing, or nvJitLink is older than what it links.
    """
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise RuntimeFailure(f"compiling for a GPU needs {name}: {_REMEDY}") from error
    for name, read in (("nvrtc", _nvrtc), ("nvvm", _nvvm), ("nvjitlink", _nvjitlink)):
        try:
            major, minor = read()
        except Exception as error:  # noqa: BLE001
            # Each loader has errors of its own for a library that is not there.
            raise RuntimeFailure(
                f"compiling for a GPU needs {name}, which does not load "
                f"({_first_line(error)}): {_REMEDY}"
            ) from error
        found[name] = f"{major}.{minor}"
    check_order(found)
    return found


def check_order(found: Mapping[str, str]) -> None:
    """Check that the linker is not older than the compilers.

    Args:
        found: versions by name, `nvrtc`, `nvvm` and `nvjitlink` among them.

    Raises:
        RuntimeFailure: it is.
    """
    linker = _number(found["nvjitlink"])
    for compiler in ("nvrtc", "nvvm"):
        if _number(found[compiler]) > linker:
            raise RuntimeFailure(
                f"nvJitLink {found['nvjitlink']} cannot link what {compiler} {found[compiler]} "
                f"makes: upgrade nvidia-nvjitlink to {found[compiler]} or later"
            )


def compile_cxx(
    source: str, *, arch: str, include: Path, name: str, line_info: bool = False
) -> bytes:
    """Compile CUDA C++ to code for the linker.

    Args:
        source: the translation unit.
        arch: for example `sm_90`.
        include: folder that its includes are found in.
        name: what errors call the source.
        line_info: whether profilers can name lines.

    Raises:
        RuntimeFailure: NVRTC refuses it or is missing.
    """
    versions()
    from cuda.core import Program, ProgramOptions

    capability(arch)
    options = ProgramOptions(
        name=name,
        arch=arch,
        std="c++17",
        include_path=str(include),
        lineinfo=line_info,
        link_time_optimization=True,
        relocatable_device_code=True,
    )
    with _telling(f"NVRTC does not compile {name} for {arch}"):
        return bytes(Program(source, "c++", options).compile("ltoir").code)


def link(
    parts: Sequence[bytes],
    *,
    arch: str,
    name: str,
    target: Target = "cubin",
    line_info: bool = False,
) -> bytes:
    """Link code for one architecture, optimised as a whole.

    Args:
        parts: what `compile_cxx` or numba-cuda made, LTO-IR.
        arch: the architecture that all parts were made for.
        name: what errors call the result.
        target: machine code, or PTX.
        line_info: whether profilers can name lines.

    Raises:
        RuntimeFailure: nvJitLink refuses them or is missing.
    """
    versions()
    from cuda.core import Linker, LinkerOptions

    options = LinkerOptions(
        name=name,
        arch=arch,
        link_time_optimization=True,
        lineinfo=line_info,
        ptx=True if target == "ptx" else None,
    )
    with _telling(f"nvJitLink does not link {name} for {arch}"):
        return bytes(Linker(*map(_object, parts), options=options).link(target).code)


def _object(part: bytes) -> ObjectCode:
    from cuda.core import ObjectCode

    return ObjectCode.from_ltoir(part)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turn what a compiler raises into one sentence."""
    try:
        yield
    except Exception as error:
        raise RuntimeFailure(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return the line of a compiler's log that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if _SAYS_ERROR.search(line)), (lines or ["no reason"])[0])


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _nvrtc() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


def _nvvm() -> tuple[int, int]:
    """Return the toolkit that NVVM is from, by its package: it tells the version of its IR only."""
    from cuda.bindings import nvvm

    nvvm.version()
    for name in ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12"):
        try:
            major, minor = version(name).split(".")[:2]
        except PackageNotFoundError:
            continue
        return int(major), int(minor)
    # A toolkit of the machine brings NVRTC and NVVM together.
    return _nvrtc()


def _nvjitlink() -> tuple[int, int]:
    from cuda.bindings import nvjitlink

    major, minor = nvjitlink.version()
    return int(major), int(minor)
