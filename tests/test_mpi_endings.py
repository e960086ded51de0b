"""Runs over MPI that end badly: one sentence, the documented code on every rank, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from bench.records.record import Run
from bench.records.store import read_run
from comms.mpi import launcher as launchers
from comms.mpi.control import start_time
from comms.mpi.launcher import find_launcher
from comms.mpi.ranks import library_name
from kernels.rows import row_bytes

ROOT = Path(__file__).parent.parent
#: What "no hang" means: from the cause to the end.
END_S = 10.0
#: Far more than any run here takes; only a run that hangs meets it.
LIMIT_S = 60.0
SMALL = ("--device", "cpu", "--tokens", "64", "--kernel", "direct")


def _alone(folder: Path, *args: str) -> subprocess.Popen[str]:
    """Start epbench by itself; it starts its ranks."""
    command = [sys.executable, "-m", "bench", "run", *args, "--results", str(folder / "results")]
    return _start(command, dict(os.environ))


def _launched(
    folder: Path, num_ranks: int, *args: str, fault: str = "none"
) -> subprocess.Popen[str]:
    """Start ranks of epbench by the launcher, as a user would, with a fault in them."""
    launcher = find_launcher(library_name())
    program = [sys.executable, str(ROOT / "tests" / "faulty_rank.py"), fault, "run", *args]
    command = launcher.command(num_ranks, [*program, "--results", str(folder / "results")])
    environment = {**launcher.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return _start(command, environment)


#: Processes of the test that runs, to be ended with it.
_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """End what a failed test has left: ranks end with the process that started them."""
    yield
    for process in _STARTED:
        process.kill()
        process.communicate()
    _STARTED.clear()


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


def _ended(process: subprocess.Popen[str], limit_s: float = LIMIT_S) -> str:
    """Wait for the end and return what was said on stderr."""
    try:
        _, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"no end within {limit_s} s")
    return stderr


def _sentence(stderr: str) -> str:
    """Return the one sentence of epbench; a launcher may say more."""
    said = [line for line in stderr.splitlines() if line.startswith("epbench: ")]
    assert len(said) == 1, stderr
    assert "Traceback" not in stderr
    return said[0]


def _kept(folder: Path) -> Run:
    (path,) = (folder / "results").rglob("*.json")
    return read_run(path)


def _wait_for_ranks(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """Return the processes of the ranks, by rank, once a first case has been kept."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        files = list((folder / "results").rglob("*.json"))
        if files and read_run(files[0]).cases:
            return sorted(_python_ranks(process.pid))
        time.sleep(0.05)
    raise AssertionError("no case was kept")


def _python_ranks(root: int) -> list[int]:
    """Return the processes below `root` that are ranks."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and start_time(int(entry.name)) >= 0:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    return [
        pid
        for pid in parents
        if pid != root
        and _is_below(pid, root, parents)
        and (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")[1:3]
        == [b"-m", b"bench.ranks"]
    ]


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == root:
            return True
    return False


def _two_specs(folder: Path) -> subprocess.Popen[str]:
    """Start a run whose first spec ends at once and whose others take long."""
    few = ("--kernel", "direct/pull", "--tokens", "0,4096", "--iters", "3000", "--timeout", "20")
    return _alone(folder, "--device", "cpu", *few)


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (lambda process, ranks: os.kill(ranks[1], signal.SIGKILL), 4, "died"),
        (lambda process, ranks: os.kill(ranks[0], signal.SIGKILL), 4, "died"),
        (lambda process, ranks: os.kill(ranks[1], signal.SIGTERM), 130, "SIGTERM"),
        (lambda process, ranks: process.send_signal(signal.SIGTERM), 130, "SIGTERM"),
        (lambda process, ranks: process.send_signal(signal.SIGINT), 130, "interrupted after 1 of"),
    ],
    ids=["killed rank", "killed first rank", "terminated rank", "terminated", "Ctrl-C"],
)
def test_a_run_that_is_ended(
    end: Callable[[subprocess.Popen[str], list[int]], None], code: int, told: str, tmp_path: Path
) -> None:
    process = _two_specs(tmp_path)
    ranks = _wait_for_ranks(process, tmp_path)
    assert len(ranks) == 2
    end(process, ranks)
    sentence = _sentence(_ended(process, END_S))
    assert process.returncode == code, sentence
    assert told in sentence
    assert "results so far" in sentence
    run = _kept(tmp_path)
    assert not run.complete
    assert [case.status for case in run.cases] == ["passed"] * 3
    assert all(start_time(pid) < 0 for pid in ranks)


def test_a_rank_that_stops_answering(tmp_path: Path) -> None:
    process = _launched(tmp_path, 2, *SMALL, "--timeout", "3", fault="silent:1")
    sentence = _sentence(_ended(process, LIMIT_S))
    assert process.returncode == 4, sentence
    assert "rank 1 made no step for 5 s" in sentence
    assert not _kept(tmp_path).complete


def test_a_rank_that_never_arrives(tmp_path: Path) -> None:
    process = _launched(tmp_path, 2, *SMALL, "--timeout", "3", fault="absent:1")
    stderr = _ended(process, LIMIT_S)
    assert process.returncode == 4, stderr
    assert "MPI's start" in stderr
    assert "Traceback" not in stderr


def test_an_exception_in_one_rank(tmp_path: Path) -> None:
    process = _launched(tmp_path, 2, *SMALL, fault="raise:1")
    sentence = _sentence(_ended(process))
    assert process.returncode == 1, sentence
    assert "internal error" in sentence
    assert "ValueError: a fault of the test" in sentence
    assert not _kept(tmp_path).complete


def test_output_that_the_first_rank_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    process = _launched(tmp_path, 2, *SMALL)
    sentence = _sentence(_ended(process))
    assert process.returncode == 2, sentence
    assert "cannot write results under" in sentence


def test_a_bad_flag_is_told_once(tmp_path: Path) -> None:
    process = _launched(tmp_path, 2, *SMALL, "--num-topk", "300")
    sentence = _sentence(_ended(process))
    assert process.returncode == 2, sentence
    assert "300" in sentence


@pytest.mark.parametrize(
    ("fault", "code", "statuses", "told"),
    [
        ("deadlock", 4, ["passed", "timeout", "skipped"], "waits for ready["),
        ("divide", 3, ["passed", "error", "skipped"], "division by zero"),
        ("wrong", 7, ["passed", "incorrect", "incorrect"], "expected"),
    ],
)
def test_a_wrong_kernel(
    fault: str, code: int, statuses: list[str], told: str, tmp_path: Path
) -> None:
    args = ("--device", "cpu", "--tokens", "24", "--kernel", "direct/pull,mpi/dedup")
    process = _launched(tmp_path, 2, *args, "--timeout", "3", "--iters", "2", fault=fault)
    stderr = _ended(process)
    assert process.returncode == code, stderr
    run = _kept(tmp_path)
    assert run.complete
    cases = run.cases
    assert [case.status for case in cases[:3]] == statuses
    assert told in str(cases[1].reason)


def test_rows_that_arrive_after_the_kernel_has_returned(tmp_path: Path) -> None:
    rows = np.array([[0, 0], [4000, 0]]) * row_bytes(7168, "fp8")
    matrix = tmp_path / "bytes.txt"
    matrix.write_text("\n".join(" ".join(map(str, row)) for row in rows.tolist()))
    args = ("--device", "cpu", "--kernel", "direct/pull", "--routing", f"matrix:{matrix}")
    process = _launched(tmp_path, 2, *args, "--iters", "0", fault="late")
    stderr = _ended(process)
    assert process.returncode == 7, stderr
    case = _kept(tmp_path).cases[0]
    assert case.status == "incorrect"
    assert case.check.num_wrong > 0


def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    huge = ("--hidden", "1000000", "--tokens", "8192", "--kernel", "direct/pull")
    process = _alone(tmp_path, "--device", "cpu", *huge)
    sentence = _sentence(_ended(process))
    assert process.returncode == 3, sentence
    assert "MB of shared memory are needed" in sentence
    assert [case.status for case in _kept(tmp_path).cases] == ["error"] * 3


def test_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launchers.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", *SMALL, "--results", str(tmp_path / "results")]) == 5
    assert "no mpirun" in capsys.readouterr().err
    assert [case.status for case in _kept(tmp_path).cases] == ["skipped"] * 6


def test_a_launcher_of_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "HYDRA build details:" if "Open MPI" in library_name() else "mpirun (Open MPI) 5.0"
    fake = tmp_path / "mpirun"
    fake.write_text(f"#!/bin/sh\necho '{said}'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(launchers.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", *SMALL, "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert str(fake) in error
    assert "install" in error


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "2"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS=2"),
    ],
)
def test_ranks_that_do_not_find_each_other(
    variables: dict[str, str], told: str, tmp_path: Path
) -> None:
    results = ["--results", str(tmp_path / "results"), "--timeout", "3"]
    process = _start(
        [sys.executable, "-m", "bench", "run", *SMALL, *results], {**os.environ, **variables}
    )
    sentence = _sentence(_ended(process))
    assert process.returncode == 2, sentence
    assert told in sentence


def test_the_simulator_under_a_launcher(tmp_path: Path) -> None:
    process = _launched(tmp_path, 2, "--tokens", "16")
    sentence = _sentence(_ended(process))
    assert process.returncode == 2, sentence
    assert "start epbench alone" in sentence


def test_more_ranks_than_cores(tmp_path: Path) -> None:
    num_ranks = len(os.sched_getaffinity(0)) + 1
    args = ("--device", "cpu", "--tokens", "8", "--kernel", "direct/pull", "--iters", "3")
    process = _alone(tmp_path, *args, "--ranks", str(num_ranks), "--num-sms", "2")
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, stderr
    assert "times include waiting for a core" in stdout
    run = _kept(tmp_path)
    assert [rank.rank for rank in run.ranks] == list(range(num_ranks))
    assert run.environment.mpi == library_name()
    assert {case.status for case in run.cases} == {"passed"}
    assert {len(case.rank_us) for case in run.cases} == {num_ranks}
    assert {len(case.samples_us) for case in run.cases} == {3}


def test_ranks_of_a_user_check_every_iteration(tmp_path: Path) -> None:
    args = ("--device", "cpu", "--tokens", "8", "--kernel", "direct/pull,mpi/dedup")
    process = _launched(tmp_path, 3, *args, "--iters", "4", "--check", "each", "--nodes", "3")
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, stderr
    assert stdout.count("device cpu") == 3
    run = _kept(tmp_path)
    assert run.complete
    assert {case.world_size for case in run.cases} == {3}
    passed = [case for case in run.cases if case.status == "passed"]
    assert {(case.kernel, case.op) for case in passed} == {
        ("direct", "dispatch"),
        *(("mpi", op) for op in ("dispatch", "combine", "pair")),
    }
    for case in passed:
        assert len(case.samples_us) == 4
        # The first run and four iterations, each of all tokens.
        assert case.check.num_checked % 5 == 0
        assert case.memcpy_us is None
