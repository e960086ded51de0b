"""`epbench trace`: the file that a reader opens, the page, and how the command ends."""

import gzip
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import FULL, L2, LINK_MBPS, Programs, Sandbox, cost, over_link, through_sm
from mutants import Mutation, install_mutant
from test_engine_errors import line_of

from bench import harness
from bench.check import CheckResult
from bench.cli import main
from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.observed import Observed
from bench.timeline import traced
from bench.timeline.busy import Busy
from bench.timeline.events import trace_events, write_trace
from bench.timeline.page import summary_page
from bench.timeline.summary import LaunchSummary, summarize
from bench.timeline.traced import Traced
from bench.timeline.warps import Warps
from comms.errors import TimeoutFailure
from comms.sim.timeline import Recorder, Timeline
from kernels.direct import PULL

SMALL = ["--tokens", "24", "--num-sms", "2", "--ranks", "2"]
Events = list[dict[str, Any]]


def busy(*stretches: tuple[int, int]) -> Busy:
    begin, end = np.array(stretches, np.int64).T
    return Busy(begin, end, np.full(len(stretches), 5))


def test_busy_times() -> None:
    one = busy((10, 20), (20, 25), (40, 41))
    assert one.until(np.array([0, 10, 15, 25, 30, 41, 99])).tolist() == [0, 0, 5, 15, 15, 16, 16]
    assert one.share(15, 45) == 11 / 30
    assert one.share(3, 3) == 0
    assert one.bytes_between(0, 21) == 10
    assert one.gaps(0, 50) == [(0, 10), (25, 40), (41, 50)]
    assert one.gaps(12, 30) == [(25, 30)]
    assert one.gaps(26, 30) == [(26, 30)]
    stretches = one.stretches()
    assert stretches.begin.tolist() == [10, 40]
    assert stretches.num_bytes.tolist() == [10, 5]
    none = Busy.of([])
    assert (none.share(0, 9), none.gaps(3, 7)) == (0, [(3, 7)])


def late(box: Sandbox) -> Programs:
    """Return programs in which rank 1 sends a row at once and a signal 90 us later."""
    return {
        (0, 0, 0): [(code.WAIT_GE, box.flag(1), 1), (code.WAIT_GE, box.flag(2), 1)],
        (1, 0, 0): [
            *((code.MARK, 4), box.copy(1, 0), (code.STORE_RELEASE, 0, box.flag(1), 1)),
            *((code.MARK, 6), (code.PAUSE, 90_000), (code.STORE, 0, box.flag(2), 1)),
        ],
    }


def page_of(timeline: Timeline) -> str:
    return summary_page("a test", Traced(timeline, None, None), summarize(timeline))


def only(launches: list[LaunchSummary]) -> LaunchSummary:
    (one,) = launches
    return one


def test_a_late_signal_is_named_with_its_line() -> None:
    box = Sandbox()
    timeline = box.record(late(box))
    one = only(summarize(timeline))
    top, second = one.waits[:2]
    assert (top.what, top.flag, top.count) == ("flags", "flags[2]", 2)
    assert top.place.endswith(f"kernels_for_tests.py:{line_of('isa.wait_ge(a, b)', code.run_step)}")
    assert top.longest_ps > 85e6
    assert second.what == "acknowledgements"
    assert "bound by no port and no pipe" in one.verdict
    assert f"for flags at {top.place}" in one.verdict
    text = page_of(timeline)
    assert f" flags             {top.place}" in text
    assert "flags[2]" in text


def test_the_busiest_port_idles_after_its_row() -> None:
    box = Sandbox()
    one = only(summarize(box.record(late(box))))
    left, wire = through_sm(FULL), cost(FULL, LINK_MBPS)
    assert one.idle is not None
    assert (one.idle.port, one.idle.rank) == ("NVLink out", 1)
    longest = one.idle.gaps[0]
    (before,) = (gap for gap in one.idle.gaps if gap.begin_us == 0)
    assert before.length_us == left / 1e6
    assert before.meanwhile == [("rows pass the SM in stage 4", 1.0)]
    assert longest.length_us > 89
    doing, part = longest.meanwhile[0]
    assert doing == "else in stage 6"
    assert part == pytest.approx(1.0, abs=0.01)
    (out, into, copies) = one.uses
    assert [use.name for use in one.uses] == ["NVLink out", "NVLink in", "SM copy pipes"]
    # Two words follow the row.
    assert out.most == pytest.approx((wire + 2 * cost(32, LINK_MBPS)) / 1e6 / one.time_us)
    assert out.mean == pytest.approx(out.most)
    assert (out.rank, into.rank, copies.rank) == (1, 0, 1)


def test_stage_times_add_up() -> None:
    box = Sandbox()
    timeline = box.record(late(box))
    warps = Warps(timeline, 0)
    stages = {one.stage: one for one in warps.stage_times()}
    assert set(stages) == {"unmarked", "stage 4", "stage 6"}
    row = stages["stage 4"]
    left, back = through_sm(FULL), over_link(FULL) + 750_000
    assert (row.pass_ps, row.wait_ps) == (left, back)
    assert row.total_ps == pytest.approx(left + back, abs=20_000)
    assert sum(one.total_ps for one in stages.values()) == warps.total_ps


def test_a_full_link_bounds() -> None:
    box = Sandbox()
    programs = {(0, sm, warp): [box.copy(0, 1)] * 20 for sm in range(8) for warp in range(12)}
    one = only(summarize(box.record(programs)))
    assert one.verdict.startswith("bound by NVLink out (100.0 % of the middle, rank 0)")
    assert "NVLink in" in one.verdict


def test_an_sm_that_copies_all_the_time_bounds() -> None:
    box = Sandbox()
    programs = {(0, 0, warp): [box.copy(0, 1)] * 20 for warp in range(12)}
    assert only(summarize(box.record(programs))).verdict.startswith("bound by SM copy pipes (")


def test_a_launch_without_traffic() -> None:
    box = Sandbox()
    timeline = box.record({(0, 0, 0): [(code.PAUSE, 5)]})
    one = only(summarize(timeline))
    assert (one.idle, one.uses, one.waits) == (None, [], [])
    assert "a test" in page_of(timeline)


# The file


def read(path: Path) -> Events:
    data = path.read_bytes()
    events: Events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)[
        "traceEvents"
    ]
    return events


def names_of(events: Events, what: str) -> dict[tuple[int, int], str]:
    found = [event for event in events if event["name"] == f"{what}_name"]
    names = {(one["pid"], one.get("tid", -1)): one["args"]["name"] for one in found}
    assert len(names) == len(found)
    return names


def slices_by_thread(events: Events) -> dict[tuple[str, str], Events]:
    """Return slices by the names of process and thread, which tell all tracks apart."""
    processes, threads = names_of(events, "process"), names_of(events, "thread")
    assert len(set(processes.values())) == len(processes)
    found: dict[tuple[str, str], Events] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            pid, tid = event["pid"], event["tid"]
            found[processes[pid, -1], threads[pid, tid]].append(event)
    return found


def test_tracks_can_be_told_apart(tmp_path: Path) -> None:
    box = Sandbox()
    timeline = box.record(late(box))
    path = tmp_path / "trace.json"
    write_trace(path, timeline)
    events = read(path)
    tracks = slices_by_thread(events)
    assert set(tracks) == {
        *(("rank 0", "launches"), ("rank 1", "launches"), ("rank 1", "NVLink out")),
        *(("rank 0", "NVLink in"), ("rank 0 sm 0", "warp 0"), ("rank 1 sm 0", "warp 0")),
        ("rank 1 sm 0", "warp 0 transfers"),
    }
    waits = [one for one in tracks["rank 0 sm 0", "warp 0"] if one["name"].startswith("wait ")]
    assert [one["name"] for one in waits] == ["wait flags[1]", "wait flags[2]"]
    assert waits[0]["ts"] == L2 / 1e6
    args = waits[1]["args"]
    assert (args["seen"], args["wanted"]) == (0, 1)
    assert "kernels_for_tests.py:" in args["line"]
    row, *words = tracks["rank 1 sm 0", "warp 0 transfers"]
    assert row["name"] == "rows to rank 0"
    assert (row["ts"], row["dur"]) == (0, (through_sm(FULL) + over_link(FULL)) // 1000 / 1000)
    assert (row["args"]["link"], row["args"]["bytes"]) == ("NVLink", FULL)
    assert [word["args"]["flag"] for word in words] == ["flags[1]", "flags[2]"]
    (port_row, *_) = tracks["rank 1", "NVLink out"]
    assert port_row["args"]["bytes"] == FULL
    stages = [one["name"] for one in tracks["rank 1 sm 0", "warp 0"]][:2]
    assert stages == ["stage 4", "stage 6"]


def test_counters_show_what_ports_carry() -> None:
    box = Sandbox()
    timeline = box.record(late(box))
    end = int(timeline.end_ps.max())
    points = [
        event
        for event in trace_events(timeline)
        if event["ph"] == "C" and event["name"] == "NVLink out, % busy"
    ]
    assert points[-1]["args"]["%"] == 0
    mean = np.mean([point["args"]["%"] for point in points[:-1]]) / 100
    sent = cost(FULL, LINK_MBPS) + 2 * cost(32, LINK_MBPS)
    assert mean == pytest.approx(sent / end, rel=0.01)
    assert max(point["args"]["%"] for point in points) <= 100


def trace_small(path: Path, *flags: str) -> int:
    return main(["trace", "--kernel", "direct/pull", *SMALL, "--out", str(path), *flags])


def test_a_kernel_traced_twice_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    assert trace_small(first) == trace_small(second) == 0
    pages = capsys.readouterr().out.replace(str(second), str(first)).split("# PREDICTED")
    assert pages[1] == pages[2]
    assert first.read_bytes() == second.read_bytes()
    tracks = slices_by_thread(read(first))
    assert {one["name"] for one in tracks["rank 0", "launches"]} == {"dispatch", "combine"}
    warp = {one["name"] for one in tracks["rank 1 sm 1", "warp 15"]}
    stages = {"counting", "exchanging", "sending", "waiting", "reducing", "ending"}
    assert {*stages, "rows pass the SM", "wait for its block", "wait for the rows it reads"} <= warp
    ends = {one["name"] for rank in (0, 1) for one in tracks[f"rank {rank} sm 0", "warp 0"]}
    assert {"wait hello[0]", "wait hello[1]"} & ends
    assert {"wait done[0]", "wait read[0]"} <= ends
    transfers = {thread for _, thread in tracks if "transfers" in thread}
    assert "warp 0 transfers" in transfers


def test_slices_of_a_thread_lie_inside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert trace_small(path, "--kernel", "direct/push", "--op", "combine") == 0
    for track in slices_by_thread(read(path)).values():
        open_ends: list[int] = []
        spans = [(round(1000 * one["ts"]), round(1000 * one["dur"])) for one in track]
        for begin, length in sorted(spans, key=lambda one: (one[0], -one[1])):
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or begin + length <= open_ends[-1]
            open_ends.append(begin + length)


# The command


@pytest.mark.parametrize("op", ["dispatch", "combine", "pair"])
@pytest.mark.parametrize("form", ["fresh", "cached"])
def test_a_traced_operation_takes_the_time_of_a_run(
    op: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace_small(tmp_path / "a.json", "--op", op, "--form", form) == 0
    grid = Grid(
        kernel=("direct/pull",), tokens=(24,), num_sms=(2,), ranks_per_node=(2,), form=(form,)
    )
    (spec,) = expand([grid])
    (case,) = (case for case in run_spec(spec, lambda *_: None) if case.op == op)
    told = capsys.readouterr().out.splitlines()[1]
    assert told == f"# {case.time_us:.1f} us, outputs right"


def test_the_page_tells_what_was_dropped_and_which_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max-records", "99", "--trace-ranks", "1"]
    assert trace_small(tmp_path / "a.json", *flags) == 0
    out = capsys.readouterr().out
    assert "# ranks recorded: 1 of 2" in out
    assert " records found no room" in out
    assert {one for one, _ in slices_by_thread(read(tmp_path / "a.json"))} <= {
        *("rank 1", "rank 1 sm 0", "rank 1 sm 1"),
    }


@pytest.mark.parametrize(
    ("flags", "exit_code", "sentence"),
    [
        (["--device", "cpu"], 2, "trace records virtual time, which device sim has alone"),
        (["--kernel", "direct"], 2, "these flags name 2: variant pull, push; give one of each"),
        (["--num-sms", "2,3"], 2, "these flags name 2: num_sms 2, 3; give one of each"),
        (["--trace-ranks", "0,2"], 2, "--trace-ranks must be below the 2 ranks"),
        (
            ["--kernel", "mpi/dedup"],
            5,
            "nothing ran: mpi/dedup pair: it runs on device cpu or cuda only",
        ),
        (["--op", "combine", "--nodes", "2"], 5, "pulls by remote loads, which reach one node"),
        (["--out", "no/such/trace.json"], 2, "cannot write the trace to no/such/trace.json"),
    ],
)
def test_a_mistake_ends_with_a_sentence(
    flags: list[str],
    exit_code: int,
    sentence: str,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert trace_small(Path("a.json"), *flags) == exit_code
    out, err = capsys.readouterr()
    assert sentence in err
    assert out == ""
    assert err.count("\n") == 1
    assert not list(in_tmp.iterdir())


def test_wrong_outputs_are_shown_and_end_with_their_code(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = traced.Predicted.observe

    def wrong(*args: Any) -> Observed:  # noqa: ANN401
        return replace(observe(*args), check=CheckResult(3, 5, "row 1 differs"))

    monkeypatch.setattr(traced.Predicted, "observe", wrong)
    assert trace_small(Path("a.json")) == 7
    out, err = capsys.readouterr()
    assert "3 of 5 rows wrong" in out
    assert err == "epbench: pair is incorrect: row 1 differs\n"
    assert Path("a.json").exists()


def test_a_deadlock_is_shown_and_ends_with_its_code(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = Mutation(
        "kernels.direct.combine_pull",
        "signal(p.rank, peer, p.ranks_per_node, p.read, 1, sm)",
        "isa.add(p.rank, p.read, 0)",
    )
    install_mutant(PULL, dropped, monkeypatch)
    monkeypatch.setattr(traced, "find_protocol", harness.find_protocol)
    assert trace_small(Path("a.json")) == 4
    out, err = capsys.readouterr()
    assert "# did not end: deadlock at" in out
    assert re.search(r"^#  .*waits for read\[0\] >= 4, sees 0", out, re.M)
    assert re.search(r"^ read +combine_pull\.py:\d+ .* read\[0\]$", out, re.M)
    assert "waits for read[0] >= 4, sees 0" in err
    names = [event["name"] for event in read(Path("a.json"))]
    assert names.count("wait read[0]") == 2


def test_a_launch_that_stops_before_any_mark_is_summed_up() -> None:
    box, recorder = Sandbox(), Recorder()
    with pytest.raises(TimeoutFailure):
        box.run({(0, 0, 0): [(code.WAIT_GE, box.flag(0), 1)]}, recorder)
    assert recorder.timeline is not None
    (launch,) = summarize(recorder.timeline)
    assert [(wait.what, wait.count) for wait in launch.waits] == [("flags", 1)]
