"""The launcher that starts ranks on this machine, chosen to fit the library that mpi4py uses."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comms.errors import RuntimeFailure, UsageError

_NAMES = ("mpirun", "mpiexec")
_LIMIT_S = 20
_SIGNALLED = 128
_DEADLY = (
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGILL,
    signal.SIGFPE,
)
_OPEN_MPI, _HYDRA, _NONE = "Open MPI", "Hydra", "none"


@dataclass(frozen=True, slots=True)
class Launcher:
    """A program that starts ranks.

    Attributes:
        path: the program.
        kind: `"Open MPI"`, `"Hydra"`, which is MPICH's and Intel MPI's, or `"none"` for a rank that
            is a process of its own.
    """

    path: Path
    kind: str

    def command(self, num_ranks: int, program: Sequence[str]) -> list[str]:
        """Return the command that starts a program as so many ranks of this host.

        There may be more ranks than cores. Ranks are not bound: their SMs are threads that share
        what cores there are.
        """
        if self.kind == _NONE:
            assert num_ranks == 1, f"{num_ranks=}"
            return list(program)
        how = ["--oversubscribe", "--bind-to", "none"] if self.kind == _OPEN_MPI else []
        return [str(self.path), *how, "-n", str(num_ranks), *program]

    def signal_of(self, exit_code: int) -> int | None:
        """Return the signal that a rank died by, by what the launcher ended with, else None.

        Open MPI's adds 128 to it. Hydra's gives it as it is, after killing the other ranks, and no
        rank of epbench ends by itself with such a code.
        """
        if exit_code < 0:
            return -exit_code
        if self.kind == _NONE:
            return None
        if exit_code > _SIGNALLED:
            return exit_code - _SIGNALLED
        return exit_code if self.kind == _HYDRA and exit_code in _DEADLY else None

    def environment(self) -> dict[str, str]:
        """Return the environment to start it in."""
        environment = dict(os.environ)
        if self.kind == _OPEN_MPI:
            # Its UCX windows are for networks, and complain where there is none.
            environment.setdefault("OMPI_MCA_osc", "^ucx")
            if os.geteuid() == 0:
                environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
                environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        return environment


def no_launcher() -> Launcher:
    """Return what starts the only rank of a world, as a child of this process."""
    return Launcher(Path(sys.executable), _NONE)


def find_launcher(library: str, environment: Mapping[str, str] = os.environ) -> Launcher:
    """Return the launcher of an MPI library: beside this Python, or on the PATH.

    Args:
        library: name and version of the library that mpi4py uses.
        environment: where PATH is looked up.

    Raises:
        RuntimeFailure: there is none.
        UsageError: there are only launchers of other libraries.
    """
    wanted = _OPEN_MPI if _OPEN_MPI in library else _HYDRA
    beside = [Path(sys.prefix) / "bin" / name for name in _NAMES]
    on_path = [shutil.which(name, path=environment.get("PATH", "")) for name in _NAMES]
    found = [path for path in beside if path.exists()]
    found += [Path(path) for path in on_path if path is not None]
    others = []
    for path in dict.fromkeys(found):
        kind = _kind(path)
        if kind == wanted:
            return Launcher(path, kind)
        others.append(f"{path} is {kind}'s" if kind else f"{path} names no MPI")
    if others:
        raise UsageError(
            f"mpi4py uses {library}, but {', '.join(others)}: put the mpirun of {wanted} on the "
            "PATH, or install an mpi4py for this one"
        )
    raise RuntimeFailure(
        f"no mpirun beside this Python or on the PATH: install one (pip install 'epbench[mpi]' for "
        f"Open MPI; mpi4py uses {library}), or start epbench by your cluster's launcher"
    )


def _kind(path: Path) -> str | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    said = done.stdout + done.stderr
    if "Open MPI" in said or "OpenRTE" in said or "PRRTE" in said:
        return _OPEN_MPI
    return _HYDRA if "HYDRA" in said or "Intel(R) MPI" in said else None
