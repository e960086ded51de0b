"""The command line with the real simulator: its files, its endings and its exit codes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from mutants import Mutation, install_mutant

from bench.cli import main
from bench.records.frame import results_frame
from bench.records.record import Case, Run, run_schema
from bench.records.store import read_run
from kernels.direct import PULL

ROOT = Path(__file__).parent.parent
#: Far more than any run here takes; only a run that hangs meets it.
LIMIT_S = 60


def _command(*args: str) -> list[str]:
    return [sys.executable, "-m", "bench", *args]


def _epbench(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the clone, with results in `folder`."""
    results = ["--results", str(folder / "results")] if args[0] == "run" else []
    return subprocess.run(
        _command(*args, *results),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def _one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the message on stderr, which is one line."""
    messages = [line for line in done.stderr.splitlines() if line.startswith("epbench: ")]
    assert len(messages) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return messages[0]


def _stable(run: Run) -> list[Case]:
    """Return the cases without the time that the simulator itself took."""
    return [
        msgspec.structs.replace(case, sim=case.sim and msgspec.structs.replace(case.sim, wall_s=0))
        for case in run.cases
    ]


_SMALL = ("run", "--tokens", "16", "--num-sms", "2", "--kernel", "direct/pull")


def test_a_run_keeps_what_it_predicts(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = _epbench(tmp_path, *_SMALL, "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *direct/pull +fresh +2 ", done.stdout, re.MULTILINE)
    assert "PREDICTED" in done.stdout

    run = read_run(file)
    assert run.complete
    assert run.end_time is not None
    assert [case.op for case in run.cases] == ["dispatch", "combine", "pair"]
    for case in run.cases:
        assert (case.status, case.reason, case.fidelity) == ("passed", None, "predicted")
        assert (case.world_size, case.num_tokens, case.num_sms) == (8, 16, 2)
        assert case.time_us is not None
        assert case.samples_us == [case.time_us]
        assert case.phases_us
        assert case.bytes is not None
        assert case.bytes.logical > case.bytes.local > 0
        assert case.gbs is not None
        assert case.sim is not None
        assert case.sim.events > 0
        assert case.check.num_checked > 0
        assert case.efficiency == pytest.approx(case.bound_own_us / case.time_us)
    (kept,) = (tmp_path / "results").rglob("*.json")
    assert kept.read_bytes() == file.read_bytes()


def test_a_run_file_has_the_keys_of_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert _epbench(tmp_path, *_SMALL, "--json", str(file)).returncode == 0
    written = msgspec.json.decode(file.read_bytes())
    schemas = run_schema()["$defs"]
    assert isinstance(schemas, dict)
    assert set(written) == set(schemas["Run"]["properties"])
    for case in written["cases"]:
        assert set(case) == set(schemas["Case"]["properties"])


def test_a_run_again_predicts_the_same(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.json" for i in range(2)]
    for file in files:
        args = ("run", "--tokens", "24", "--num-sms", "2", "--nodes", "1,2", "--ranks-per-node")
        assert _epbench(tmp_path, *args, "4", "--json", str(file)).returncode == 0
    first, second = (read_run(file) for file in files)
    assert len(first.cases) == 2 * 4 * 3
    assert _stable(first) == _stable(second)
    assert first.run_id != second.run_id


def test_a_frame_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    args = ("run", "--tokens", "16", "--kernel", "direct", "--nodes", "2", "--ranks-per-node", "2")
    assert _epbench(tmp_path, *args, "--json", str(file)).returncode == 0
    frame = results_frame([read_run(file)])
    assert len(frame) == 6
    assert frame["case_id"].is_unique
    assert list(frame["status"]) == ["passed", "skipped", "skipped", *["passed"] * 3]
    assert frame["time_us"].isna().tolist() == [False, True, True, False, False, False]
    assert (frame["check_num_wrong"] == 0).all()
    assert frame["complete"].all()


def test_a_run_of_which_everything_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    args = ("run", "--kernel", "direct", "--nodes", "2", "--cross-rail", "forbidden")
    done = _epbench(tmp_path, *args, "--json", str(file))
    assert done.returncode == 5
    assert "cross_rail = forbidden" in _one_sentence(done)
    run = read_run(file)
    assert run.complete
    assert [case.status for case in run.cases] == ["skipped"] * 6
    assert all(case.reason for case in run.cases)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--num-sms", "133"), "133"),
        (("--ranks-per-node", "0"), "0"),
        (("--nodes", "0"), "0"),
        (("--kernel", "nope"), "nope"),
        (("--kernel", "direct/nope"), "nope"),
        (("--fabric", "h900"), "h900"),
        (("--num-topk", "300"), "300"),
        (("--routing", "hot:1000"), "1000"),
        (("--routing", "file:absent.npy"), "absent.npy"),
    ],
)
def test_what_cannot_be_run(args: tuple[str, str], names: str, tmp_path: Path) -> None:
    done = _epbench(tmp_path, "run", "--tokens", "8", *args)
    assert done.returncode == 2, done.stderr
    assert names in _one_sentence(done)


def test_wrong_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = "worker + 1, num_workers)"
    install_mutant(
        PULL,
        Mutation("kernels.direct.combine_pull", old, old.replace("workers)", "workers + 1)")),
        monkeypatch,
    )
    file = tmp_path / "run.json"
    args = [*_SMALL, "--ranks-per-node", "4", "--json", str(file), "--results", str(tmp_path)]
    assert main(args) == 7
    told = capsys.readouterr().err
    assert "2 cases incorrect, first direct/pull combine, EP4, 2 SMs: combine to rank 0" in told
    run = read_run(file)
    assert run.complete
    assert [case.status for case in run.cases] == ["passed", "incorrect", "incorrect"]
    assert run.cases[1].check.num_wrong > 0


def test_what_there_is_is_listed(tmp_path: Path) -> None:
    done = _epbench(tmp_path, "list")
    assert done.returncode == 0
    for name in ("direct", "nccl_like", "dedup", "h800", "deepseek-v3", "hot:RATIO", "main"):
        assert name in done.stdout


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    num_sms = ",".join(map(str, range(1, 65)))
    args = ("run", "--tokens", "512", "--kernel", "direct/push", "--num-sms", num_sms)
    outputs = ("--json", str(file), "--results", str(tmp_path))
    with subprocess.Popen(
        _command(*args, *outputs), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            deadline = time.monotonic() + LIMIT_S
            while not (file.exists() and read_run(file).cases):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert b"interrupted after" in stderr
    assert b"Traceback" not in stderr
    run = read_run(file)
    assert not run.complete
    assert run.end_time is not None
    assert 3 <= len(run.cases) < 3 * 64
    assert len(run.cases) % 3 == 0
    assert {case.status for case in run.cases} == {"passed"}
