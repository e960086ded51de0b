"""`epbench doctor`: what it says of a machine, of its MPI and of ranks, and that it always ends."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli import main
from bench.doctor import machine as doctor_machine
from bench.doctor.ranks import Row
from bench.pages.doctor import Page, tell_ranks
from comms import fiber
from comms.errors import RuntimeFailure
from comms.mpi import launcher, ranks, window
from comms.mpi.ranks import library_name

ROOT = Path(__file__).parent.parent
LIMIT_S = 60
TOPICS = (
    "device sim",
    "device cpu",
    "device cuda",
    "MPI",
    "launcher",
    "shared memory",
    "cores",
    "load",
    "versions",
    "machine",
)


def _findings(text: str) -> dict[str, str]:
    """Return status and text of each topic, several joined; no line may be anything else."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(ok|note|bad) +(\S+(?: \S+)*)  +(\S.*)", line)
        assert match, line
        status, topic, words = match.groups()
        found[topic] = f"{found.get(topic, '')}{status}: {words}\n"
    return found


def _split(text: str) -> tuple[list[list[str]], str]:
    """Return the cells of the table of ranks, and the other lines."""
    lines = text.splitlines(keepends=True)
    table = [line.lstrip("#").split() for line in lines if line.startswith("#")]
    return table, "".join(line for line in lines if not line.startswith("#"))


def _run(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "doctor", *args],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def _put_launcher(
    folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, fits: bool = True
) -> Path:
    """Let this be the only launcher there is: it tells a version, and otherwise runs a script."""
    is_open_mpi = "Open MPI" in library_name()
    says = "mpirun (Open MPI) 5.0" if is_open_mpi == fits else "HYDRA build details:"
    path = folder / "mpirun"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit 0\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(launcher.sys, "prefix", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return path


def _row(rank: int, *cores: int, host: int = 0, of: int = 8) -> Row:
    return Row(rank, rank, host, 1000 + rank, list(cores), of)


def _told(rows: list[Row]) -> tuple[list[list[str]], str]:
    said: list[str] = []
    page = Page(said.append)
    tell_ranks(page, rows)
    assert page.bad == []
    table, lines = _split("".join(said))
    return table, _findings(lines)["ranks"]


# A machine


def test_every_topic_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    found = _findings(out)
    assert tuple(found) == TOPICS
    assert err == ""
    assert "bad" not in {text.partition(":")[0] for text in found.values()}
    assert found["device sim"].startswith("ok")
    assert found["device cuda"].startswith("note: not looked for")
    assert f"ok: {library_name()}, mpi4py " in found["MPI"]
    assert re.search(r"about \d+ tokens per rank", found["shared memory"])
    for name in ("python", "epbench", "numpy", "numba", "llvmlite", "mpi4py", "msgspec"):
        assert re.search(rf"\b{name} \d", found["versions"])


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from bench.cli import main; main(['doctor', '--help']); "
        "slow = {'numpy', 'numba', 'pandas', 'rich', 'mpi4py', 'ml_dtypes'}; "
        "sys.exit(','.join(slow & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--ranks N" in done.stdout


def test_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: ((os.cpu_count() or 1) + 1.5, 0.0, 0.0))
    assert main(["doctor"]) == 0
    assert "note: " in (load := _findings(capsys.readouterr().out)["load"])
    assert "other work runs here: times will vary" in load


def test_an_idle_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert main(["doctor"]) == 0
    assert _findings(capsys.readouterr().out)["load"].startswith("ok: 0.0 on ")


def test_little_shared_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(window, "free_bytes", lambda: 64 * 1024 * 1024)
    assert main(["doctor"]) == 0
    text = _findings(capsys.readouterr().out)["shared memory"]
    assert text.startswith("note: 0.1 GB free in /dev/shm")
    assert "--shm-size" in text


def test_no_shared_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(window, "free_bytes", missing)
    assert main(["doctor"]) == 0
    assert _findings(capsys.readouterr().out)["shared memory"].startswith("note: /dev/shm cannot")


def test_another_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise RuntimeFailure("fibers need an x86-64 processor; run epbench on one")

    monkeypatch.setattr(fiber, "install_switch", refuse)
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    found = _findings(out)
    assert found["device sim"].startswith("bad: fibers need an x86-64 processor")
    assert found["device cpu"].startswith("bad")
    assert err.count("\n") == 1


# MPI and its launcher


def test_no_mpi_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> str:
        raise RuntimeFailure("mpi4py finds no MPI library: install one")

    monkeypatch.setattr(ranks, "library_name", none)
    assert main(["doctor", "--ranks", "2"]) == 0
    found = _findings(capsys.readouterr().out)
    assert found["MPI"] == "note: mpi4py finds no MPI library: install one\n"
    assert found["device sim"].startswith("ok")
    for topic in ("device cpu", "launcher", "ranks"):
        assert found[topic].startswith("note"), topic


def test_no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    library, why_not = doctor_machine.find_library()
    assert library is None
    assert "mpi4py finds no MPI library" in why_not


def test_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "--ranks", "2"]) == 0
    found = _findings(capsys.readouterr().out)
    assert found["device cpu"].startswith("note: needs a launcher")
    assert found["launcher"].startswith("note: no mpirun")
    assert "pip install" in found["launcher"]
    assert found["ranks"].startswith("note: none were started")


def test_a_launcher_of_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _put_launcher(tmp_path, monkeypatch, "exit 1", fits=False)
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    found = _findings(out)
    assert found["launcher"].startswith("bad: ")
    assert str(path) in found["launcher"]
    assert found["device cpu"].startswith("bad: ")
    assert err == (
        "epbench: not all is well with device cpu, launcher: the lines that begin with bad say "
        "what to do\n"
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
    ],
)
def test_ranks_that_do_not_find_each_other(variables: dict[str, str]) -> None:
    done = _run(**variables)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    found = _findings(done.stdout)
    name, size = next(iter(variables.items()))
    assert found["launcher"].startswith("bad: ")
    assert f"{name}={size}" in found["launcher"]
    assert "start with the mpirun of" in found["launcher"]
    assert found["device cpu"].startswith("bad: ")
    assert done.stderr.count("epbench: ") == 1


def test_the_first_rank_speaks_alone() -> None:
    done = _run(OMPI_COMM_WORLD_SIZE="3", OMPI_COMM_WORLD_RANK="1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "epbench" not in done.stderr


def test_ranks_start_no_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["doctor", "--ranks", "2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "leave out --ranks" in err


# Ranks


def test_ranks_that_doctor_starts() -> None:
    num_ranks = len(os.sched_getaffinity(0)) + 1
    done = _run("--ranks", str(num_ranks), "--timeout", "50")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    table, lines = _split(done.stdout)
    found = _findings(lines)
    assert tuple(found) == (*TOPICS, "ranks")
    assert table[0] == ["rank", "local_rank", "host", "pid", "cores", "bound-to"]
    assert [row[:3] for row in table[1:]] == [[str(r), str(r), "0"] for r in range(num_ranks)]
    assert len({row[3] for row in table[1:]}) == num_ranks
    assert all(cell.isdigit() for row in table[1:] for cell in row[:5])
    assert found["ranks"].startswith(f"ok: {num_ranks} on one host have met\n")
    assert "ranks share cores: times include waiting for them" in found["ranks"]


def test_ranks_that_a_launcher_started() -> None:
    mpirun = launcher.find_launcher(library_name())
    program = [sys.executable, "-m", "bench", "doctor", "--timeout", "50"]
    done = subprocess.run(
        mpirun.command(2, program),
        cwd=ROOT,
        env=mpirun.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table, lines = _split(done.stdout)
    found = _findings(lines)
    assert tuple(found) == (*TOPICS, "ranks")
    assert " started 2 ranks (" in found["launcher"]
    assert str(mpirun.path) in found["launcher"]
    assert [row[0] for row in table] == ["rank", "0", "1"]


def test_ranks_that_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "pid"
    _put_launcher(tmp_path, monkeypatch, f"sleep 600 & echo $! > {mark}; wait")
    start = time.monotonic()
    assert main(["doctor", "--ranks", "2", "--timeout", "3"]) == 4
    assert time.monotonic() - start < 20
    out, err = capsys.readouterr()
    assert tuple(_findings(out)) == TOPICS
    assert err.startswith("epbench: 2 ranks have not met and ended within 3 s: ")
    assert err.count("\n") == 1
    assert _has_ended(int(mark.read_text()))


def _has_ended(pid: int) -> bool:
    from comms.mpi.control import start_time

    deadline = time.monotonic() + 5
    while start_time(pid) >= 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    return start_time(pid) < 0


def test_a_launcher_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_launcher(tmp_path, monkeypatch, "printf -- '----\\nno slots\\n here\\n' >&2; exit 9")
    assert main(["doctor", "--ranks", "2"]) == 3
    out, err = capsys.readouterr()
    words = "bad: mpirun ended with 9 before all ranks had run: no slots here\n"
    assert _findings(out)["ranks"] == words
    assert err.startswith("epbench: not all is well with ranks: ")


def test_a_launcher_whose_ranks_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in list(os.environ):
        if variable.startswith(("OMPI_", "PMI_", "SLURM_")):
            monkeypatch.delenv(variable)
    script = 'while [ "$1" != -n ]; do shift; done; shift 2; exec "$@"'
    _put_launcher(tmp_path, monkeypatch, script)
    assert main(["doctor", "--ranks", "2", "--timeout", "50"]) == 2
    out, _ = capsys.readouterr()
    assert "started 2 ranks, but the first one sees a world of 1" in _findings(out)["ranks"]


def test_a_rank_tells_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "PMI_SIZE=2 PMI_RANK=0" if "Open MPI" in library_name() else "OMPI_COMM_WORLD_SIZE=2"
    other += "" if "Open MPI" in library_name() else " OMPI_COMM_WORLD_RANK=0"
    script = f'while [ "$1" != -n ]; do shift; done; shift 2; {other} exec "$@"'
    _put_launcher(tmp_path, monkeypatch, script)
    assert main(["doctor", "--ranks", "2", "--timeout", "50"]) == 2
    assert "which cannot join them" in _findings(capsys.readouterr().out)["ranks"]


def test_ranks_with_cores_of_their_own() -> None:
    table, text = _told([_row(0, 0, 1, 2, 3), _row(1, 4, 6, 7)])
    assert table[1:] == [
        ["0", "0", "0", "1000", "4", "0-3"],
        ["1", "1", "0", "1001", "3", "4,6-7"],
    ]
    assert text == "ok: 2 on one host have met\n"


def test_ranks_bound_to_a_core_each() -> None:
    _, text = _told([_row(0, 3), _row(1, 4)])
    assert "note: each is bound to a single core" in text
    assert "--bind-to none" in text
    assert "share cores" not in text


def test_ranks_bound_to_the_same_core() -> None:
    _, text = _told([_row(0, 3), _row(1, 3)])
    assert "2 on 1 core of a host: ranks share cores" in text


def test_a_machine_of_one_core_binds_nothing() -> None:
    table, text = _told([_row(0, 0, of=1)])
    assert table[1][-1] == "none"
    assert text == "ok: 1 on one host have met\n"


def test_ranks_on_several_hosts() -> None:
    _, text = _told([_row(0, 0, 1), _row(1, 0, 1, host=1), _row(2, 0, 1, host=1)])
    assert text.startswith("note: 3 on 2 hosts: device cpu needs all on one")
    assert text.endswith("on device cuda hosts are nodes\n")
    assert "--nodes" in text
    assert "share cores" not in text
