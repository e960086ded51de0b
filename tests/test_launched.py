"""What launchers say, which one fits the MPI library, and whether shared memory is enough."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from comms.errors import RuntimeFailure, UsageError
from comms.mpi import launcher as launchers
from comms.mpi import window
from comms.mpi.launched import Launched, launched
from comms.mpi.launcher import Launcher, find_launcher
from comms.mpi.ranks import Ranks

OPEN_MPI, MPICH = "Open MPI v5.0.8", "MPICH 4.3.1"

OPEN_MPI_RANK = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3"}
HYDRA_RANK = {"PMI_SIZE": "4", "PMI_RANK": "1", "PMI_FD": "7"}
SLURM_SCRIPT = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
SLURM_RANK = {**SLURM_SCRIPT, "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OPEN_MPI_RANK, ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", 8, 3)),
        (HYDRA_RANK, ("Hydra's mpiexec (MPICH or Intel MPI)", "PMI_SIZE", 4, 1)),
        (SLURM_RANK, ("Slurm's srun", "SLURM_STEP_NUM_TASKS", 16, 9)),
        # srun --mpi=pmi2 speaks Hydra's protocol.
        (
            {**SLURM_RANK, "PMI_SIZE": "16", "PMI_RANK": "9"},
            ("Slurm's srun", "SLURM_STEP_NUM_TASKS", 16, 9),
        ),
        # Hydra's proxies may be a step of Slurm, one on each node.
        (
            {**SLURM_RANK, "SLURM_STEP_NUM_TASKS": "2", **HYDRA_RANK, "MPI_LOCALNRANKS": "2"},
            ("Hydra's mpiexec (MPICH or Intel MPI)", "PMI_SIZE", 4, 1),
        ),
        # Open MPI's daemons may be a step of Slurm, one on each node.
        (
            {**SLURM_RANK, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", **OPEN_MPI_RANK},
            ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", 8, 3),
        ),
        ({**OPEN_MPI_RANK, **SLURM_SCRIPT}, ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", 8, 3)),
        (
            {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0", **HYDRA_RANK},
            ("MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", 2, 0),
        ),
        (
            {"PMI_SIZE": "1", "PMI_RANK": "0"},
            ("Hydra's mpiexec (MPICH or Intel MPI)", "PMI_SIZE", 1, 0),
        ),
    ],
)
def test_a_rank_knows_who_started_it(
    environment: dict[str, str], expected: tuple[str, str, int, int]
) -> None:
    assert launched(environment) == Launched(*expected)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PATH": "/usr/bin", "HOME": "/root"},
        SLURM_SCRIPT,
        {"OMPI_COMM_WORLD_SIZE": "8"},
        {"OMPI_COMM_WORLD_RANK": "3"},
        {"OMPI_COMM_WORLD_SIZE": "many", "OMPI_COMM_WORLD_RANK": "3"},
        {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "-1"},
        {"PMI_SIZE": "", "PMI_RANK": ""},
        {"PMI_SIZE": "4.0", "PMI_RANK": "1"},
        {"PMI_SIZE": " 4", "PMI_RANK": "1"},
    ],
)
def test_a_process_that_no_launcher_started_is_no_rank(environment: dict[str, str]) -> None:
    assert launched(environment) is None


def test_garbage_of_one_launcher_does_not_hide_another() -> None:
    found = launched({**HYDRA_RANK, "OMPI_COMM_WORLD_SIZE": "?", "OMPI_COMM_WORLD_RANK": "0"})
    assert found is not None
    assert found.variable == "PMI_SIZE"


def test_this_process_is_looked_at_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPEN_MPI_RANK:
        monkeypatch.setenv(name, OPEN_MPI_RANK[name])
    found = launched()
    assert found is not None
    assert (found.size, found.rank) == (8, 3)


SAYS_OPEN_MPI = "echo 'mpirun (Open MPI) 5.0'"
SAYS_HYDRA = "echo 'HYDRA build details:'; echo '    Version: 4.3.1'"
SAYS_INTEL = "echo 'Intel(R) MPI Library for Linux* OS, Version 2021.13'"
SAYS_NOTHING = "exit 3"


class Machine:
    """A place beside Python, and a PATH of two folders; all are empty at first."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside = folder / "venv" / "bin"
        self.first, self.second = folder / "first", folder / "second"
        for place in (self.beside, self.first, self.second):
            place.mkdir(parents=True)
        self.environment = {"PATH": f"{self.first}{os.pathsep}{self.second}"}
        monkeypatch.setattr(sys, "prefix", str(folder / "venv"))

    def find(self, library: str) -> Launcher:
        """Return the launcher that is found for a library."""
        return find_launcher(library, self.environment)


def install(folder: Path, script: str, name: str = "mpirun") -> Path:
    """Write a launcher that only says its version."""
    path = folder / name
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] || exit 9\n{script}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("library", "script", "kind"),
    [
        (OPEN_MPI, SAYS_OPEN_MPI, "Open MPI"),
        (OPEN_MPI, "echo 'mpiexec (OpenRTE) 4.1.2'", "Open MPI"),
        (OPEN_MPI, "echo 'prterun (PRRTE) 3.0' >&2", "Open MPI"),
        (MPICH, SAYS_HYDRA, "Hydra"),
        (MPICH, SAYS_INTEL, "Hydra"),
        ("Intel(R) MPI Library 2021.13", SAYS_INTEL, "Hydra"),
    ],
)
@pytest.mark.parametrize("name", ["mpirun", "mpiexec"])
def test_the_launcher_of_the_library_is_chosen(
    machine: Machine, library: str, script: str, kind: str, name: str
) -> None:
    path = install(machine.second, script, name)
    assert machine.find(library) == Launcher(path, kind)


def test_the_launcher_beside_python_comes_first(machine: Machine) -> None:
    install(machine.first, SAYS_OPEN_MPI)
    path = install(machine.beside, SAYS_OPEN_MPI, "mpiexec")
    assert machine.find(OPEN_MPI) == Launcher(path, "Open MPI")


def test_a_launcher_of_another_library_is_passed_over(machine: Machine) -> None:
    install(machine.beside, SAYS_OPEN_MPI)
    install(machine.first, SAYS_NOTHING)
    path = install(machine.first, SAYS_HYDRA, "mpiexec")
    assert machine.find(MPICH) == Launcher(path, "Hydra")


def test_a_wrong_launcher_is_named_with_its_library(machine: Machine) -> None:
    one = install(machine.first, SAYS_HYDRA)
    other = install(machine.beside, SAYS_NOTHING, "mpiexec")
    with pytest.raises(UsageError) as raised:
        machine.find(OPEN_MPI)
    text = str(raised.value)
    assert text.startswith(f"mpi4py uses {OPEN_MPI}, but ")
    assert f"{one} is Hydra's" in text
    assert f"{other} names no MPI" in text
    assert "put the mpirun of Open MPI on the PATH" in text
    assert "\n" not in text
    one.unlink()
    other.unlink()
    wrong = install(machine.second, SAYS_OPEN_MPI)
    with pytest.raises(UsageError, match="put the mpirun of Hydra on the PATH") as raised:
        machine.find(MPICH)
    assert f"{wrong} is Open MPI's" in str(raised.value)


def test_a_launcher_that_cannot_be_run_names_no_mpi(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = machine.first / "mpirun"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setattr(launchers, "_LIMIT_S", 0.1)
    hangs = install(machine.second, "exec sleep 60", "mpiexec")
    with pytest.raises(UsageError) as raised:
        machine.find(OPEN_MPI)
    assert f"{broken} names no MPI" in str(raised.value)
    assert f"{hangs} names no MPI" in str(raised.value)


def test_no_launcher_names_the_remedy(machine: Machine) -> None:
    # What nobody may run is no launcher.
    install(machine.first, SAYS_OPEN_MPI).chmod(0o644)
    for environment in (machine.environment, {"PATH": ""}, {}):
        with pytest.raises(RuntimeFailure) as raised:
            find_launcher(OPEN_MPI, environment)
        text = str(raised.value)
        assert text.startswith("no mpirun beside this Python or on the PATH: ")
        assert "pip install 'epbench[mpi]'" in text
        assert f"mpi4py uses {OPEN_MPI}" in text
        assert "start epbench by your cluster's launcher" in text


def test_open_mpi_starts_more_ranks_than_cores_and_binds_none() -> None:
    command = Launcher(Path("/opt/mpirun"), "Open MPI").command(4, ["python", "-m", "bench"])
    assert command[0] == "/opt/mpirun"
    assert command[-5:] == ["-n", "4", "python", "-m", "bench"]
    assert command[1:-5] == ["--oversubscribe", "--bind-to", "none"]


def test_hydra_is_given_no_option_of_open_mpi() -> None:
    command = Launcher(Path("/opt/mpiexec"), "Hydra").command(2, ["python"])
    assert command == ["/opt/mpiexec", "-n", "2", "python"]


@pytest.mark.parametrize("user", [0, 1000])
def test_open_mpi_runs_as_root_only_where_the_user_is(
    user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_MCA_osc", "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEPT", "as it is")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    environment = Launcher(Path("mpirun"), "Open MPI").environment()
    added = {name: text for name, text in environment.items() if os.environ.get(name) != text}
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert added == {"OMPI_MCA_osc": "^ucx", **(as_root if user == 0 else {})}
    assert environment["KEPT"] == "as it is"
    assert "OMPI_MCA_osc" not in os.environ


def test_what_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_MCA_osc", "rdma")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "0")
    environment = Launcher(Path("mpirun"), "Open MPI").environment()
    assert environment["OMPI_MCA_osc"] == "rdma"
    assert environment["OMPI_ALLOW_RUN_AS_ROOT"] == "0"


def test_hydra_runs_in_the_environment_as_it_is() -> None:
    assert Launcher(Path("mpiexec"), "Hydra").environment() == dict(os.environ)


class FakeComm:
    """Ranks whose answers are known; `given` is what this one has told them."""

    def __init__(self, others: Sequence[tuple[float, int, int]]) -> None:
        self._others = others
        self.given: list[tuple[float, int, int]] = []

    def allgather(self, own: tuple[float, int, int]) -> list[tuple[float, int, int]]:
        """Return what all ranks have told."""
        self.given.append(own)
        return [*self._others, own]


def fake_ranks(local_size: int, *others: tuple[float, int, int]) -> tuple[Ranks, FakeComm]:
    """Return ranks of which `local_size` share this host."""
    comm = FakeComm(others)
    return cast(Ranks, SimpleNamespace(local_size=local_size, comm=comm)), comm


def test_memory_is_required_for_all_ranks_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "free_bytes", lambda: 1_000_000_000)
    ranks, comm = fake_ranks(4)
    window.require(200_000_000, ranks)
    ((room, free, needed),) = comm.given
    assert (free, needed) == (1_000_000_000, 800_000_000)
    # A part of what is free is left alone.
    assert 0 <= room < free - needed
    with pytest.raises(RuntimeFailure) as raised:
        window.require(250_000_000, ranks)
    assert str(raised.value) == (
        "1000 MB of shared memory are needed, /dev/shm has 1000 MB free: use fewer tokens or "
        "ranks, or enlarge it (docker run --shm-size)"
    )


def test_every_rank_refuses_what_one_host_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "free_bytes", lambda: 10**12)
    full, fuller = (-1_000_000, 64_000_000, 70_000_000), (-9_000_000, 60_000_000, 80_000_000)
    ranks, comm = fake_ranks(2, (5.0, 10**9, 10**8), full, fuller)
    with pytest.raises(RuntimeFailure, match="^80 MB .* are needed, /dev/shm has 60 MB free"):
        window.require(10, ranks)
    assert len(comm.given) == 1
    ranks, _ = fake_ranks(2, (0.0, 10**9, 10**8))
    window.require(10, ranks)


@pytest.mark.parametrize(("blocks", "available", "free"), [(3, 10**6, 3 * 4096), (10**6, 77, 77)])
def test_free_memory_is_the_least_of_file_system_and_machine(
    blocks: int, available: int, free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def statvfs(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        # What only root may use, `f_bfree`, is not counted.
        return SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_bfree=10**9, f_bsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(window, "_available_bytes", lambda: available)
    assert window.free_bytes(tmp_path) == free
    assert window.free_bytes() == free
    assert asked == [tmp_path, Path("/dev/shm")]


def test_this_machine_has_free_memory(tmp_path: Path) -> None:
    assert 0 < window.free_bytes(tmp_path) < 1 << 50


@pytest.mark.parametrize(
    ("kind", "exit_code", "number"),
    [
        ("Open MPI", 137, 9),
        ("Open MPI", 9, None),
        ("Open MPI", 4, None),
        ("Hydra", 9, 9),
        ("Hydra", 139, 11),
        ("Hydra", -15, 15),
        ("Hydra", 2, None),
    ],
)
def test_what_a_launcher_tells_of_a_killed_rank(
    kind: str, exit_code: int, number: int | None
) -> None:
    assert Launcher(Path("mpirun"), kind).signal_of(exit_code) == number
