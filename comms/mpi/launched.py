"""What a launcher's environment says of this process, before MPI is loaded."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_SPEAKS_S = 3.0

_SLURM = "Slurm's srun"
#: Launchers by what they set: name, variables of the number of ranks and of the rank, and one that
#: only this launcher sets where others set the same. The first that fits counts: Open MPI and Hydra
#: may themselves be started by Slurm, and Slurm sets Hydra's variables.
_VARIABLES = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ""),
    ("MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", ""),
    ("Hydra's mpiexec (MPICH or Intel MPI)", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    (_SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", ""),
    ("Hydra's mpiexec (MPICH or Intel MPI)", "PMI_SIZE", "PMI_RANK", ""),
)


@dataclass(frozen=True, slots=True)
class Launched:
    """This process as its launcher numbers it.

    Attributes:
        launcher: who started it.
        variable: environment variable that tells the number of ranks.
        size: ranks that were started.
        rank: this one.
    """

    launcher: str
    variable: str
    size: int
    rank: int


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Return what started this process as one of several ranks, None where nothing did.

    A job script of Slurm is no rank: only steps, which `srun` starts, have SLURM_STEP_NUM_TASKS. A
    step of one task may be a shell.
    """
    for launcher, size, rank, own in _VARIABLES:
        if own and own not in environment:
            continue
        if launcher == _SLURM and environment.get(size) == "1":
            continue
        if environment.get(size, "").isdigit() and environment.get(rank, "").isdigit():
            return Launched(launcher, size, int(environment[size]), int(environment[rank]))
    return None


def let_first_speak() -> None:
    """Wait, as a later rank, where the first one is likely to have the same to say.

    A launcher ends all ranks when one ends with an error, and what the others still had to say is
    lost: the first must not be among them.
    """
    me = launched()
    if me is not None and me.rank > 0:
        time.sleep(_FIRST_SPEAKS_S)
