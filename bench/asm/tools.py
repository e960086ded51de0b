"""The binary utilities, from their wheels, and whether what compiling needs is here."""

from __future__ import annotations

import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from comms.errors import RuntimeFailure

REMEDY = "pip install -e '.[cuda-compile]'"
_TOOLS = {"nvdisasm": "nvidia-cuda-nvdisasm", "cuobjdump": "nvidia-cuda-cuobjdump"}
_NEEDED = ("numba-cuda", "cuda-core", *_TOOLS.values())
_LIMIT_S = 120


def check_packages() -> None:
    """Check that what compiles and what reads machine code is installed.

    Raises:
        RuntimeFailure: something is missing.
    """
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise RuntimeFailure(f"epbench asm needs {', '.join(missing)}: {REMEDY}")


def instructions_text(cubin: bytes) -> str:
    """Return the instructions of a cubin as JSON."""
    return _run("nvdisasm", ["--emit-json"], cubin)


def listing(cubin: bytes) -> str:
    """Return the instructions of a cubin as text, with labels."""
    return _run("nvdisasm", ["--print-code"], cubin)


def resources_text(cubin: bytes) -> str:
    """Return what the functions of a cubin use."""
    return _run("cuobjdump", ["-res-usage"], cubin)


def _run(tool: str, flags: list[str], cubin: bytes) -> str:
    command = [str(_path_of(tool)), *flags]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run(
                [*command, file.name], capture_output=True, text=True, timeout=_LIMIT_S, check=True
            )
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout or "no reason").split("\n")
            raise RuntimeFailure(f"{' '.join(command)} failed: {lines[0]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeFailure(f"{' '.join(command)} failed: {error}") from error
    return done.stdout


def _path_of(tool: str) -> Path:
    """Return where a wheel has put a tool."""
    name = _TOOLS[tool]
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in (tool, f"{tool}.exe"):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise RuntimeFailure(f"there is no {tool} in {name}: {REMEDY}")


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
