"""Files of a run: atomic, valid after each case, and honest when a write fails."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from bench.records.files import probe, write_atomic
from bench.records.record import Config, Run, decode_run
from bench.records.store import RunStore, new_run, read_run, run_path
from comms.errors import RuntimeFailure, UsageError


def header() -> Run:
    return new_run("sim", ["epbench", "run"], Config(None, []))


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_path_names_machine_time_commit_and_run(run: Run, tmp_path: Path) -> None:
    assert run_path(run, tmp_path) == (
        tmp_path / "sim-00000000" / "20260102T030405Z_01234567_11112222.json"
    )


def test_path_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.records.environment._ROOT", tmp_path)
    name = run_path(header(), tmp_path).name
    assert re.fullmatch(r"\d{8}T\d{6}Z_nogit_[0-9a-f]{8}\.json", name)


def test_file_is_valid_after_each_add(run: Run, tmp_path: Path) -> None:
    store = RunStore(header(), tmp_path / "results", tmp_path / "out.json")
    for num_cases in (1, 2, 3):
        store.add([run.cases[num_cases]])
        for path in (store.path, tmp_path / "out.json"):
            kept = decode_run(path.read_bytes())
            assert kept.cases == run.cases[1 : num_cases + 1]
            assert not kept.complete
            assert kept.end_time is None
    store.finish(complete=True)
    kept = read_run(store.path)
    assert kept.complete
    assert kept.end_time is not None
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_full_disk_keeps_the_version_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(header(), tmp_path)
    store.add(run.cases[:2])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RuntimeFailure, match=r"disk full .* 2 of 5 cases are kept"):
        store.add(run.cases[2:5])
    assert read_run(store.path).cases == run.cases[:2]
    assert list(tmp_path.rglob("*.tmp")) == []


def test_full_disk_under_results_still_writes_the_other_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "out.json"
    other.parent.mkdir()
    store = RunStore(header(), tmp_path / "results", other)
    replace = os.replace

    def full_results(source: Path, target: Path) -> None:
        if target == store.path:
            full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_results)
    with pytest.raises(RuntimeFailure, match="disk full"):
        store.add(run.cases[:2])
    assert read_run(other).cases == run.cases[:2]


def test_interrupt_inside_a_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"before")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.read_bytes() == b"before"


def test_link_is_followed_not_replaced(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.touch()
    link = tmp_path / "link.json"
    link.symlink_to(target)
    RunStore(header(), tmp_path / "results", link).add(run.cases[:1])
    assert link.is_symlink()
    assert json.loads(target.read_bytes())["cases"][0]["kernel"] == "direct"


def test_pipe_gets_the_run_once(run: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    store = RunStore(header(), tmp_path / "results", pipe)
    store.add(run.cases[:1])
    store.add(run.cases[1:2])
    store.finish(complete=True)
    assert decode_run(os.read(reader, 1 << 16)).cases == run.cases[:2]
    os.close(reader)


def test_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(b"before")
    # Permissions do not bind root, who may run the tests.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="read-only"):
        probe(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_device_that_is_full_fails_at_the_end_and_stays_a_device(run: Run, tmp_path: Path) -> None:
    store = RunStore(header(), tmp_path, Path("/dev/full"))
    store.add(run.cases[:2])
    with pytest.raises(RuntimeFailure, match="disk full at /dev/full"):
        store.finish(complete=True)
    assert Path("/dev/full").is_char_device()
    assert read_run(store.path).cases == run.cases[:2]


@pytest.mark.parametrize("name", ["folder", "file/out.json", "missing/out.json"])
def test_unwritable_json_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"cannot write --json {tmp_path / name}"):
        RunStore(header(), tmp_path / "results", tmp_path / name)
    assert list((tmp_path / "results").rglob("*.json")) == []


def test_unwritable_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write results under"):
        RunStore(header(), tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema": "other"}', b"\xff"])
def test_reading_something_else_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a run file"):
        read_run(path)


def test_reading_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_run(tmp_path / "none.json")
