"""`epbench tune` and `epbench run --tuned`: what is found, checked, kept and taken."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from conftest import timed
from mutants import Mutation, install_mutant

from bench.cases import CaseSpec, blank_case
from bench.cli import main
from bench.expand import expand
from bench.grid import Grid
from bench.pages import render
from bench.pages.table import build_page
from bench.ranks.request import Request
from bench.records.record import Case, Op, Run, TunedBy
from bench.records.store import read_run
from bench.timing import Timing
from bench.tuning import runs
from bench.tuning.apply import MATCHED, point_of, tuned_by, with_tuned
from bench.tuning.page import tuned_page
from bench.tuning.runs import grid_of, runner
from bench.tuning.tuned_file import Checked, Entry, Tuned, probe, read_tuned, write_tuned
from bench.tuning.tuner import Asked, Tuner
from comms.errors import Interrupted, RuntimeFailure, UsageError
from kernels.direct import PUSH

_GRID = Grid(kernel=("direct/push",), tokens=(20,), ranks_per_node=(4,), num_sms=(2,))
_ASKED = Asked("pair", (0, 1), (7, 8), 200, exhaustive=False)
_SMALL = ["--kernel", "direct/push", "--tokens", "20", "--ranks-per-node", "4", "--num-sms", "2"]
_DEFAULT = {"dispatch_warps": 16, "push_warps": 8, "reduce_warps": 8, "chunk_rows": 1}

TimeOf = Callable[[dict[str, int], int], float | str]


def _values(spec: CaseSpec) -> dict[str, int]:
    return {**_DEFAULT, **dict(spec.knobs)}


def _fake(time_of: TimeOf) -> Callable[[Sequence[CaseSpec]], Iterator[list[Case]]]:
    """Run specs by a formula of (knobs, seed), whose text is why a case is wrong."""

    def run_all(specs: Sequence[CaseSpec]) -> Iterator[list[Case]]:
        for spec in specs:
            told = time_of(_values(spec), spec.workload.seed)
            row = blank_case(
                spec, "pair", "incorrect", reason=str(told), impl="numba", granularity="rank"
            )
            yield [row if isinstance(told, str) else timed(row, told)]

    return run_all


def _tuner(folder: Path, time_of: TimeOf, asked: Asked = _ASKED) -> Tuner:
    tuned = Tuned(
        start_time="2026-01-02T03:04:05+00:00",
        argv=["epbench", "tune"],
        op="pair",
        seeds=list(asked.seeds),
        check_seeds=list(asked.check_seeds),
    )
    return Tuner(asked, _fake(time_of), tuned, folder / "tuned.json", lambda _: None)


def _tune(folder: Path, time_of: TimeOf, grid: Grid = _GRID) -> Tuned:
    tuner = _tuner(folder, time_of)
    tuner.tune(expand([grid]))
    file = folder / "tuned.json"
    assert file.exists() == bool(tuner.tuned.entries)
    return read_tuned(file) if file.exists() else tuner.tuned


def _fewer_pushers(knobs: dict[str, int], seed: int) -> float:
    return 100.0 + knobs["push_warps"] + seed


def _entry(**changes: object) -> Entry:
    (spec,) = expand([_GRID])
    entry = Entry(
        point=point_of(spec),
        op="pair",
        default=_DEFAULT,
        found={**_DEFAULT, "push_warps": 4},
        default_us=[10.0, 12.0],
        found_us=[9.0, 10.0],
        num_runs=8,
        num_refused=0,
        complete=True,
        dropped=[],
        check=Checked([7, 8], [10.0, 11.0], [9.0, 10.5]),
    )
    return msgspec.structs.replace(entry, **changes)


def _at(entry: Entry, **point: object) -> Entry:
    return msgspec.structs.replace(entry, point=msgspec.structs.replace(entry.point, **point))


def _file(*entries: Entry) -> Tuned:
    return Tuned(
        start_time="2026-01-02T03:04:05+00:00",
        argv=[],
        op="pair",
        seeds=[0],
        check_seeds=[7],
        entries=list(entries),
        complete=True,
    )


def test_the_fastest_is_found_frozen_and_measured_on_other_seeds(tmp_path: Path) -> None:
    tuned = _tune(tmp_path, _fewer_pushers)
    (entry,) = tuned.entries
    assert entry.default == _DEFAULT
    assert entry.found == {**_DEFAULT, "push_warps": 2}
    assert (entry.default_us, entry.found_us) == ([108.0, 109.0], [102.0, 103.0])
    assert entry.check == Checked([7, 8], [115.0, 116.0], [109.0, 110.0])
    assert entry.check.holds
    assert entry.check.ratio == pytest.approx(231 / 219)
    assert entry.taken == entry.found
    assert (tuned.complete, entry.complete) == (True, True)
    assert (entry.point.ranks_per_node, entry.point.num_tokens) == (4, 20)


def test_a_gain_that_does_not_hold_is_not_taken(tmp_path: Path) -> None:
    def overfit(knobs: dict[str, int], seed: int) -> float:
        return 100.0 - (knobs["push_warps"] == 4) * (5 if seed < 8 else -1)

    (entry,) = _tune(tmp_path, overfit).entries
    assert entry.found["push_warps"] == 4
    assert entry.check is not None
    assert not entry.check.holds
    assert entry.taken == _DEFAULT
    (row,) = tuned_page(_file(entry)).tables[0].rows
    assert row[7] == "no"


def test_where_the_default_is_the_fastest_it_stays(tmp_path: Path) -> None:
    (entry,) = _tune(tmp_path, lambda knobs, _: 100.0 + (knobs != _DEFAULT)).entries
    assert entry.found == entry.taken == _DEFAULT
    assert entry.check == Checked([7, 8], [100.0, 100.0], [100.0, 100.0])
    (row,) = tuned_page(_file(entry)).tables[0].rows
    assert (row[3], row[7]) == ("default", "-")


def test_wrong_results_are_dropped_and_told(tmp_path: Path) -> None:
    def wrong_if_few(knobs: dict[str, int], seed: int) -> float | str:
        if knobs["push_warps"] == 2 and seed == 1:
            return "a row is wrong"
        return _fewer_pushers(knobs, seed)

    tuned = _tune(tmp_path, wrong_if_few)
    (entry,) = tuned.entries
    assert entry.found["push_warps"] == 4
    assert {one.knobs["push_warps"] for one in entry.dropped} == {2}
    assert entry.dropped[0].reason == "seed 1: a row is wrong"
    assert "dropped, incorrect: direct/push (2 SMs) with" in render.plain(tuned_page(tuned))


def test_what_is_wrong_on_the_check_seeds_is_dropped_too(tmp_path: Path) -> None:
    def wrong_later(knobs: dict[str, int], seed: int) -> float | str:
        if knobs["push_warps"] == 2 and seed == 8:
            return "a row is wrong"
        return _fewer_pushers(knobs, seed)

    (entry,) = _tune(tmp_path, wrong_later).entries
    assert entry.check is not None
    assert entry.found["push_warps"] == 4
    assert {one.knobs["push_warps"] for one in entry.dropped} == {2}
    assert {one.reason for one in entry.dropped} == {"seed 8: a row is wrong"}


@pytest.mark.parametrize(("seed", "where"), [(0, "its default: "), (7, "its default on the check")])
def test_a_kernel_whose_default_is_wrong_is_not_tuned(
    seed: int, where: str, tmp_path: Path
) -> None:
    def wrong(knobs: dict[str, int], at: int) -> float | str:
        return "a row is wrong" if (knobs, at) == (_DEFAULT, seed) else _fewer_pushers(knobs, at)

    tuned = _tune(tmp_path, wrong)
    assert tuned.entries == []
    assert tuned.skipped[0].reason.startswith(where)
    assert tuned.skipped[0].reason.endswith(f"seed {seed}: a row is wrong")


def test_a_kernel_that_waits_too_little_with_one_knob_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real kernel, whose reducers do not wait where 4 warps push: fast, and wrong."""
    wait = "isa.wait_ge(flag, (epoch - 1) * EPOCH + chunk // num_pushers + 1)"
    module = "kernels.direct.combine_push"
    mutation = Mutation(module, wait, f"if p.push_warps != 4:\n                {wait}")
    install_mutant(PUSH, mutation, monkeypatch)
    asked = replace(_ASKED, seeds=(0,), check_seeds=(7,), budget=14)
    tuner = _tuner(tmp_path, _fewer_pushers, asked)
    tuner._run_all = runner(Timing(), lambda *_: None)
    tuner.tune(expand([_GRID]))
    (entry,) = tuner.tuned.entries
    assert {one.knobs["push_warps"] for one in entry.dropped} == {4}
    assert {one.status for one in entry.dropped} == {"incorrect"}
    assert entry.found["push_warps"] != 4


def test_interrupted_keeps_what_was_found_so_far(tmp_path: Path) -> None:
    def stop(knobs: dict[str, int], seed: int) -> float:
        if knobs["reduce_warps"] == 4:
            raise KeyboardInterrupt
        return _fewer_pushers(knobs, seed)

    with pytest.raises(Interrupted, match=r"after 0 of 1 kernels; found so far: .*tuned\.json"):
        _tune(tmp_path, stop)
    tuned = read_tuned(tmp_path / "tuned.json")
    (entry,) = tuned.entries
    assert not tuned.complete
    assert not entry.complete
    assert entry.found["push_warps"] == 2
    assert entry.check is None
    assert entry.taken == _DEFAULT
    assert "not checked" in render.plain(tuned_page(tuned))
    assert "INCOMPLETE" in render.plain(tuned_page(tuned))


def test_an_error_keeps_what_was_found_so_far(tmp_path: Path) -> None:
    def fail(knobs: dict[str, int], seed: int) -> float:
        if knobs["reduce_warps"] == 4:
            raise RuntimeFailure("rank 1 is gone")
        return _fewer_pushers(knobs, seed)

    with pytest.raises(RuntimeFailure, match="rank 1 is gone; found so far"):
        _tune(tmp_path, fail)
    assert read_tuned(tmp_path / "tuned.json").entries[0].found["push_warps"] == 2


def test_kernels_without_knobs_and_refused_ones_are_told(tmp_path: Path) -> None:
    grid = msgspec.structs.replace(
        _GRID, kernel=("nccl_like/dedup", "direct/pull"), nodes=(2,), ranks_per_node=(2,)
    )
    tuned = _tune(tmp_path, _fewer_pushers, grid)
    assert [one.reason for one in tuned.skipped] == [
        "has no knobs",
        "pulls by remote loads, which reach one node only",
    ]
    assert "skipped: nccl_like/dedup (fresh 2 SMs): has no knobs" in tuned_page(tuned).footer


def test_exhaustion_needs_its_budget(tmp_path: Path) -> None:
    tuner = _tuner(tmp_path, _fewer_pushers, replace(_ASKED, exhaustive=True))
    with pytest.raises(UsageError, match="all combinations of direct/push take 1248 runs, more"):
        tuner.tune(expand([_GRID]))
    tuner = _tuner(tmp_path, _fewer_pushers, replace(_ASKED, exhaustive=True, budget=2000))
    tuner.tune(expand([_GRID]))
    assert tuner.tuned.entries[0].found["push_warps"] == 2
    assert tuner.tuned.entries[0].complete


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"check_seeds": (1, 2)}, "check seeds must not be among the seeds"),
        ({"seeds": (3, 3)}, "seeds must differ, got 3,3"),
        ({"check_seeds": (8, 8)}, "check_seeds must differ"),
        ({"budget": 1}, "budget must be at least 2"),
    ],
)
def test_what_cannot_be_asked(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(_ASKED, **changes)


def test_pages_of_the_simulator_say_what_they_are_worth() -> None:
    assert "# TUNED TO THE MODEL: " in render.plain(tuned_page(_file(_entry())))
    measured = render.plain(tuned_page(_file(_at(_entry(), device="cpu"))))
    assert "MODEL" not in measured
    assert "# MEASURED" in measured


def test_variants_are_compared_by_what_runs_take() -> None:
    slow = _at(_entry(check=Checked([7], [30.0], [29.0])), variant="pull")
    lost = _at(_entry(check=Checked([7], [8.0], [9.0])), variant="other")
    text = render.plain(tuned_page(_file(slow, _entry(), lost)))
    assert (
        "# fastest direct, fresh, 2 SMs: other 8.0 us, then push 9.8 us, then pull 29.0 us" in text
    )


def test_variants_of_two_files_are_not_rivals() -> None:
    a, b = (_at(_entry(), kernel="own", source=f"{folder}/mine.py") for folder in "ab")
    (table,) = tuned_page(_file(a, _at(a, variant="pull"), b)).tables
    assert [cells[0] for cells in table.rows] == [
        *("own/push a/mine.py", "own/pull a/mine.py", "own/push b/mine.py")
    ]
    fastest = [note for note in table.notes if note.startswith("fastest")]
    assert fastest == ["fastest own a/mine.py, fresh, 2 SMs: push 9.8 us, then pull 9.8 us"]


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuned.json"
    probe(path)
    write_tuned(path, _file(_entry()))
    assert read_tuned(path) == _file(_entry())
    assert [one.name for one in path.parent.iterdir()] == ["tuned.json"]


def test_a_link_is_followed_and_a_pipe_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "tuned.json").symlink_to("target.json")
    _tune(tmp_path, _fewer_pushers)
    assert (tmp_path / "tuned.json").is_symlink()
    assert read_tuned(tmp_path / "target.json").complete
    (tmp_path / "tuned.json").unlink()
    os.mkfifo(tmp_path / "tuned.json")
    reader = os.open(tmp_path / "tuned.json", os.O_RDONLY | os.O_NONBLOCK)
    tuner = _tuner(tmp_path, _fewer_pushers)
    tuner.tune(expand([_GRID]))
    assert msgspec.json.decode(os.read(reader, 1 << 16), type=Tuned) == tuner.tuned
    os.close(reader)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not a file of epbench tune"),
        ('{"schema": "epbench-run", "schema_version": "1.0.0"}', "schema is 'epbench-run', not"),
        ('{"schema": "epbench-tuned", "schema_version": "2.0.0"}', "2.0.0 is not readable by 1."),
        ('{"schema": "epbench-tuned", "schema_version": "1.0.0"}', "missing required field"),
    ],
)
def test_files_that_are_none(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_tuned(path)
    assert told in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_tuned(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose another --out"):
        probe(tmp_path / "file" / "tuned.json")
    with pytest.raises(RuntimeFailure, match="make room and tune again"):
        write_tuned(tmp_path / "file" / "tuned.json", _file())


def test_a_file_that_cannot_be_written_ends_before_the_first_run(tmp_path: Path) -> None:
    def run(knobs: dict[str, int], seed: int) -> float:
        raise AssertionError("must not run")

    (tmp_path / "file").touch()
    tuner = _tuner(tmp_path / "file", run)
    with pytest.raises(UsageError, match="choose another --out"):
        tuner.tune(expand([_GRID]))


def test_an_older_file_stays_where_nothing_was_found(tmp_path: Path) -> None:
    def stop(knobs: dict[str, int], seed: int) -> float:
        raise KeyboardInterrupt

    write_tuned(tmp_path / "tuned.json", _file(_entry()))
    with pytest.raises(Interrupted, match="nothing was found so far"):
        _tune(tmp_path, stop)
    assert read_tuned(tmp_path / "tuned.json") == _file(_entry())


def test_a_matching_spec_takes_the_knobs_and_others_do_not() -> None:
    grid = msgspec.structs.replace(_GRID, kernel=("direct",), sm_copy=("mid", "low"), seed=5)
    specs = with_tuned(expand([grid]), _file(_entry()), "FILE")
    assert [(spec.variant, spec.knobs) for spec in specs] == [
        ("pull", ()),
        ("pull", ()),
        ("push", (("push_warps", 4),)),
        ("push", (("push_warps", 4),)),
    ]


_OTHERS = {
    "kernel": "two_hop",
    "variant": "pull",
    "source": "mine.py",
    "impl": "cupy",
    "form": "cached",
    "device": "cpu",
    "fabric": "h100",
    "cross_rail": "forbidden",
    "nodes": 2,
    "ranks_per_node": 8,
    "num_tokens": 21,
    "hidden": 128,
    "num_experts": 64,
    "num_topk": 2,
    "dispatch_dtype": "bf16",
    "combine_dtype": "fp8",
    "num_sms": 3,
}


@pytest.mark.parametrize("axis", MATCHED)
def test_an_entry_of_another_point_does_not_match(axis: str) -> None:
    other = _at(_entry(), **{axis: _OTHERS[axis]})
    with pytest.raises(UsageError, match="nothing in FILE was tuned for what is asked for: it has"):
        with_tuned(expand([_GRID]), _file(other), "FILE")


def test_a_file_without_entries_matches_nothing() -> None:
    with pytest.raises(UsageError, match="it has no entries; run `epbench tune`"):
        with_tuned(expand([_GRID]), _file(), "FILE")


def test_the_end_of_the_copy_rate_decides_between_entries() -> None:
    entries = [
        _at(_entry(found={**_DEFAULT, "push_warps": warps}), sm_copy=end)
        for end, warps in (("high", 12), ("mid", 4), ("low", 16))
    ]
    grid = msgspec.structs.replace(_GRID, sm_copy=("low", "mid", "high"))
    specs = with_tuned(expand([grid]), _file(*entries), "FILE")
    assert [dict(spec.knobs)["push_warps"] for spec in specs] == [16, 4, 12]
    (spec,) = with_tuned(expand([_GRID]), _file(entries[0], entries[2]), "FILE")
    assert dict(spec.knobs)["push_warps"] == 12


def test_a_knob_that_is_gone_is_refused() -> None:
    gone = _entry(found={**_DEFAULT, "old": 4})
    with pytest.raises(UsageError, match="FILE has knob old of direct/push, which has chunk_rows,"):
        with_tuned(expand([_GRID]), _file(gone), "FILE")


def test_ranks_take_the_same_knobs() -> None:
    grid = msgspec.structs.replace(
        _GRID, device="cpu", fabric=("uncapped",), ranks_per_node=(2,), prefix=None
    )
    (spec,) = expand([grid])
    tuned = _file(msgspec.structs.replace(_entry(), point=point_of(spec)))
    request = Request([grid, _GRID], Timing(), 1, 2, tuned=tuned)
    again = msgspec.json.decode(msgspec.json.encode(request), type=Request)
    assert again.specs() == [replace(spec, knobs=(("push_warps", 4),))]
    assert Request([grid, _GRID], Timing(), 1, 2).specs() == [spec]


def test_a_spec_has_a_grid_that_expands_into_it() -> None:
    grid = msgspec.structs.replace(
        _GRID,
        nodes=(2,),
        cross_rail="forbidden",
        sm_copy=("low",),
        hidden=256,
        masked_ratio=0.25,
        seed=3,
        skew_us=2.0,
        prefix=None,
        form=("cached",),
        dispatch_dtype=("bf16",),
        knob=("push_warps=4", "chunk_rows=1"),
    )
    (spec,) = expand([grid])
    assert expand([grid_of(spec)]) == [spec]


def test_the_command_tunes_and_a_run_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "tuned.json", tmp_path / "run.json"
    seeds = ["--seeds", "0", "--check-seeds", "7", "--budget", "12"]
    assert main(["tune", *_SMALL, *seeds, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "TUNED TO THE MODEL" in shown.out
    assert f"# Written to {out}" in shown.out
    assert "Traceback" not in shown.err
    (entry,) = read_tuned(out).entries
    assert entry.num_runs <= 12
    where = ["--results", str(tmp_path), "--json", str(run)]
    assert main(["run", *_SMALL, "--seed", "7", "--tuned", str(out), *where]) == 0
    pair = next(case for case in read_run(run).cases if case.op == "pair")
    assert pair.knobs == entry.taken
    assert entry.check is not None
    times_us = entry.check.found_us if entry.check.holds else entry.check.default_us
    assert pair.time_us == times_us[0]


def test_a_run_says_what_its_knobs_were_tuned_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, kept = tmp_path / "tuned.json", tmp_path / "run.json"
    write_tuned(path, _file(_entry(op="combine")))
    run = ["run", *_SMALL, "--kernel", "direct", "--tuned", str(path)]
    assert main([*run, "--results", str(tmp_path), "--json", str(kept)]) == 0
    untuned = "direct/pull fresh 2 SMs, h800 EP4, 20 tokens"
    line = (
        f"# {path}: knobs tuned for combine, taken by all operations; no entry for {untuned}, so "
        "the default"
    )
    assert line in capsys.readouterr().out.splitlines()
    assert read_run(kept).config.tuned == TunedBy(str(path), ["combine"], [untuned])
    assert main(["show", str(kept)]) == 0
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("ops", "untuned", "line"),
    [
        (["pair"], [], []),
        (["pair"], ["a", "b"], ["FILE: no entry for a | b, so the default"]),
        (["pair"], [*"abcdef"], ["FILE: no entry for a | b | c | d and 2 more, so the default"]),
        (["combine", "pair"], [], ["FILE: knobs tuned for combine and pair, taken by all op"]),
    ],
)
def test_the_line_on_what_knobs_were_tuned_for(
    ops: list[Op], untuned: list[str], line: list[str], run: Run
) -> None:
    config = msgspec.structs.replace(run.config, tuned=TunedBy("FILE", ops, untuned))
    footer = build_page(msgspec.structs.replace(run, config=config)).footer
    assert [told[: len(start)] for told, start in zip(footer, line, strict=False)] == line
    assert footer[len(line) :] == build_page(run).footer


def test_what_has_no_entry_is_named_once() -> None:
    grid = msgspec.structs.replace(_GRID, kernel=("direct",), sm_copy=("mid", "low"))
    tuned = _file(_entry(), _at(_entry(op="dispatch"), num_sms=9))
    assert tuned_by(expand([grid]), tuned, "FILE") == TunedBy(
        "FILE", ["pair"], ["direct/pull fresh 2 SMs, h800 EP4, 20 tokens"]
    )


def test_refusals_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "tuned.json")]
    path = tmp_path / "tuned.json"
    assert main(["tune", *_SMALL, "--seeds", "7", *out]) == 2
    assert main(["tune", "--kernel", "nccl_like/dedup", "--tokens", "8", *out]) == 5
    assert "nothing was tuned: has no knobs" in capsys.readouterr().err
    write_tuned(path, _file(_entry()))
    both = ["run", *_SMALL, "--tuned", str(path), "--knob", "push_warps=4"]
    assert main([*both, "--results", str(tmp_path)]) == 2
    assert "--tuned and --knob cannot be given together" in capsys.readouterr().err
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert main(["tune", *_SMALL, *out]) == 2
    assert "start it alone" in capsys.readouterr().err


def test_ctrl_c_prints_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(knobs: dict[str, int], seed: int) -> float:
        if knobs["chunk_rows"] == 4:
            raise KeyboardInterrupt
        return _fewer_pushers(knobs, seed)

    monkeypatch.setattr(runs, "runner", lambda *_: _fake(stop))
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *_SMALL]) == 130
    shown = capsys.readouterr()
    assert "push_warps=2" in shown.out
    assert "not checked" in shown.out
    assert "interrupted after 0 of 1 kernels" in shown.err
    (path,) = Path("results", "tuned").iterdir()
    assert json.loads(path.read_text())["complete"] is False
