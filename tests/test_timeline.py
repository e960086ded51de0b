"""What the engine records: exact times of waits, stages, rows and ports, in bounded memory."""

from typing import Any

import kernels_for_tests as code
import numpy as np
import numpy.typing as npt
import pytest
from engine_world import (
    ACK_BYTES,
    FENCE,
    FULL,
    HBM_MBPS,
    L2,
    LATENCY,
    LINK_MBPS,
    NIC_LATENCY,
    NIC_MBPS,
    NIC_POST,
    PACKET_BYTES,
    ROW,
    SM_MBPS,
    SYNC,
    WORD,
    WORD_OVER_LINK,
    Sandbox,
    cost,
    entry,
    over_link,
    through_sm,
    tick,
)
from helpers_for_tests import wait_for
from test_engine_determinism import busy_programs
from test_engine_errors import line_of

from comms.errors import TimeoutFailure
from comms.sim import state
from comms.sim.engine import Launch
from comms.sim.record import COPY_PIPE, REDUCE_PIPE
from comms.sim.timeline import UNMARKED, Recorder, Timeline
from kernels.direct.combine_pull import combine_pull
from kernels.direct.combine_push import combine_push
from kernels.direct.dispatch import dispatch
from kernels.isa.stages import stage_names


def only_wait(timeline: Timeline, rank: int = 0) -> Any:  # noqa: ANN401
    (wait,) = timeline.waits[timeline.waits["rank"] == rank]
    return wait


def span(record: Any) -> tuple[int, int]:  # noqa: ANN401
    return int(record["begin"]), int(record["end"])


def lists(*arrays: npt.NDArray[Any]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize("any_of", [False, True])
def test_a_wait_lasts_from_its_first_poll_to_the_one_that_ends_it(any_of: bool) -> None:
    box = Sandbox()
    values = np.array([7, 1], np.int64)
    wait = (code.WAIT_GE, box.flag(1), 1)
    if any_of:
        wait = (code.WAIT_ANY, box.flag(0), 8, int(values.ctypes.data), 2, box.result(0))
    box.view(1, "flags", np.int64)[:2] = -3
    late = [(code.PAUSE, 1000), (code.STORE, 1, box.flag(0), 6), (code.STORE, 1, box.flag(1), 1)]
    timeline = box.record({(0, 0, 0): late, (1, 0, 1): [wait]})
    seen = only_wait(timeline, rank=1)
    begun = L2 + WORD if any_of else L2
    assert span(seen) == (begun, tick(1_000_000 + WORD + WORD_OVER_LINK))
    assert (seen["sm"], seen["warp"], seen["seen"]) == (0, 1, -3)
    assert seen["value"] == (2 if any_of else 1)
    line = line_of("isa.wait_any(" if any_of else "isa.wait_ge(a, b)", code.run_step)
    assert timeline.wait_places(seen[None]) == [f"{code.__file__}:{line}"]
    name = "one of several from flags[0]" if any_of else "flags[1]"
    assert timeline.wait_names(seen[None]) == [name]


def test_a_wait_that_is_over_at_once_is_none() -> None:
    box = Sandbox()
    assert not len(box.record({(0, 0, 0): [(code.WAIT_GE, box.flag(0), 0)]}).waits)


def test_a_copy_goes_from_its_sm_by_the_link_to_memory() -> None:
    box = Sandbox()
    timeline = box.record({(0, 0, 0): [(code.PAUSE, 5), box.copy(0, 1)]})
    (hop,) = timeline.hops
    left, arrived = 5000 + through_sm(FULL), 5000 + through_sm(FULL) + over_link(FULL)
    assert span(hop) == (left, arrived)
    assert (hop["issued"], hop["num_bytes"], hop["code"]) == (5000, FULL, state.ROW)
    assert (hop["source"], hop["port"], hop["peer"]) == (0, state.NVL_OUT, 1)
    wire = cost(FULL, LINK_MBPS)
    assert lists(*timeline.port_use(0, state.NVL_OUT)) == [[left], [left + wire], [FULL]]
    assert lists(*timeline.port_use(1, state.NVL_IN)) == [[arrived - wire], [arrived], [FULL]]
    assert not len(timeline.port_use(1, state.NVL_OUT)[0])
    (one,) = timeline.passes
    assert (*span(one), one["num_bytes"]) == (5000, left, FULL)
    pipe = timeline.pipe_use(0, 0, COPY_PIPE)
    assert lists(*pipe) == [[5000], [5000 + cost(FULL, SM_MBPS)], [FULL]]


def test_what_acknowledges_a_row_occupies_the_port_before_the_next() -> None:
    box = Sandbox()
    arrival = through_sm(FULL) + over_link(FULL)
    pause = -(-over_link(FULL) // 1000)
    timeline = box.record(
        {(0, 0, 0): [box.copy(0, 1)], (1, 0, 0): [(code.PAUSE, pause), box.copy(1, 0)]}
    )
    posted, wire = 1000 * pause + through_sm(FULL), cost(FULL, LINK_MBPS)
    answer = cost(-(-FULL // PACKET_BYTES) * ACK_BYTES, LINK_MBPS)
    assert arrival < posted < arrival + answer
    use = lists(*timeline.port_use(1, state.NVL_OUT))
    assert use == [[posted], [arrival + answer + wire], [FULL]]


def test_a_local_row_occupies_memory_for_its_bytes_twice() -> None:
    box = Sandbox()
    timeline = box.record({(0, 0, 0): [box.copy(0, 0)]})
    left = through_sm(FULL)
    use = timeline.port_use(0, state.HBM)
    assert lists(*use) == [[left], [left + cost(2 * FULL, HBM_MBPS)], [2 * FULL]]
    assert span(timeline.hops[0]) == (left, left + cost(2 * FULL, HBM_MBPS) + L2)


def test_a_put_goes_by_the_nics_and_is_waited_for() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    timeline = box.record({(0, 0, 0): [box.put(0, 1, channel=2), (code.PUT_WAIT, 2)]})
    (hop,) = timeline.hops
    arrived = NIC_POST + NIC_LATENCY + cost(FULL, NIC_MBPS)
    assert (*span(hop), hop["issued"]) == (NIC_POST, arrived, 0)
    assert (hop["port"], hop["peer"], hop["code"]) == (state.NIC_OUT, 1, state.PUT)
    assert timeline.port_use(1, state.NIC_IN)[1].tolist() == [arrived]
    # The warp sleeps until the row is there, and until its NIC has been told.
    assert [span(wait) for wait in timeline.waits] == [
        (NIC_POST, arrived),
        (arrived, arrived + NIC_LATENCY),
    ]
    assert timeline.wait_names(timeline.waits).tolist() == ["its puts to arrive"] * 2


def test_a_reduction_reads_rows_of_others() -> None:
    box = Sandbox()
    ranks, rows = np.array([1], np.int32), np.array([0], np.int32)
    reduce = (
        *(code.REDUCE_ROWS, box.addr(0, "out"), 1, int(ranks.ctypes.data)),
        *(int(rows.ctypes.data), box.at("x"), ROW),
    )
    timeline = box.record({(0, 0, 0): [reduce]})
    request, row, out = timeline.hops
    assert (request["code"], request["source"], request["peer"]) == (state.READ_REQUEST, 0, 1)
    assert (row["code"], row["source"], row["peer"]) == (state.READ_DATA, 1, 0)
    assert (out["port"], out["peer"]) == (state.HBM, 0)
    wait = only_wait(timeline)
    assert timeline.wait_names(wait[None]) == ["the rows it reads"]
    assert span(wait) == (0, int(row["end"]))
    assert row["begin"] == request["end"]
    (_, _, copied), (_, _, summed) = (
        timeline.pipe_use(0, 0, pipe) for pipe in (COPY_PIPE, REDUCE_PIPE)
    )
    assert copied.tolist() == summed.tolist() == [FULL]


def test_warps_wait_for_room_in_a_full_queue() -> None:
    box = Sandbox()
    programs = {
        (0, sm, warp): [box.copy(0, 1, num_bytes=4 * ROW)] * 8
        for sm in range(6)
        for warp in range(8)
    }
    timeline = box.record(programs)
    waits = timeline.waits
    assert set(timeline.wait_names(waits).tolist()) == {"room in a full queue"}
    line = line_of("isa.copy_row(", code.run_step)
    assert set(timeline.wait_places(waits).tolist()) == {f"{code.__file__}:{line}"}
    # Room comes when a transfer has left the port.
    begin, end, num_bytes = timeline.port_use(0, state.NVL_OUT)
    assert set(waits["end"].tolist()) <= set(end.tolist())
    assert (end - begin).sum() == 48 * 8 * cost(4 * FULL, LINK_MBPS)
    assert num_bytes.sum() == 48 * 8 * 4 * FULL
    assert (begin[1:] >= end[:-1]).all()


@pytest.mark.parametrize(
    ("step", "name", "length"),
    [
        ((code.FENCE,), "acknowledgements", FENCE),
        ((code.BLOCK_SYNC,), "its block", 2000 + SYNC),
        ((code.FETCH_ADD, 1, 0, 1, 0), "the reply to a fetch_add", WORD_OVER_LINK + LATENCY),
    ],
)
def test_other_waits(step: tuple[int, ...], name: str, length: int) -> None:
    box = Sandbox()
    begin = 3000
    if step[0] == code.FETCH_ADD:
        step = (code.FETCH_ADD, 1, box.flag(0), 1, box.result(0))
        begin += WORD
    # The last warp of a block waits for no other.
    last = [(code.PAUSE, 5), (code.BLOCK_SYNC,)] if step[0] == code.BLOCK_SYNC else []
    timeline = box.record({(0, 0, 0): [(code.PAUSE, 3), step], (0, 0, 1): last})
    wait = only_wait(timeline)
    assert timeline.wait_names(wait[None]) == [name]
    assert span(wait) == (begin, begin + length)


def test_a_fence_waits_for_the_acknowledgement() -> None:
    box = Sandbox()
    timeline = box.record({(0, 0, 0): [box.copy(0, 1), (code.FENCE,)]})
    left = through_sm(FULL)
    assert span(only_wait(timeline)) == (left, left + over_link(FULL) + LATENCY)


def test_stages_follow_each_other() -> None:
    box = Sandbox()
    steps = [(code.PAUSE, 7), (code.MARK, 0), (code.PAUSE, 1000), (code.MARK, 5), (code.PAUSE, 20)]
    timeline = box.record({(0, 0, 1): steps, (1, 0, 0): []})
    rows = timeline.stages[(timeline.stages["rank"] == 0) & (timeline.stages["warp"] == 1)]
    found = [(int(one["code"]), *span(one)) for one in rows]
    assert found == [(UNMARKED, 0, 7000), (0, 7000, 1_007_000), (5, 1_007_000, 1_027_000)]
    assert [timeline.stage_name(0, one) for one, _, _ in found] == [
        "unmarked",
        "stage 0",
        "stage 5",
    ]


def test_names_come_from_the_source_of_each_kernel() -> None:
    dispatching = ["counting", "exchanging", "sending", "ending"]
    assert list(stage_names(dispatch).values()) == dispatching
    assert set(stage_names(combine_pull).values()) == {"waiting", "reducing", "ending"}
    assert set(stage_names(combine_push).values()) == {"pushing", "reducing", "ending"}
    assert stage_names(code.in_stages) == {0: "first", 1: "second"}
    assert stage_names(code.interpret) == {}


def in_stages(box: Sandbox) -> Launch:
    return Launch(
        name="test",
        entry=entry("in_stages"),
        num_blocks=1,
        num_warps=1,
        params=np.array([[0, box.flag(3)]] * 2, np.int64),
        row_bytes=(ROW, FULL),
        stages=stage_names(code.in_stages),
    )


def test_a_deadlock_is_recorded_with_its_waits_and_their_files() -> None:
    box = Sandbox()
    box.view(1, "flags", np.int64)[3] = 1
    recorder = Recorder()
    with pytest.raises(TimeoutFailure, match=r"helpers_for_tests\.py:8 waits for flags\[3\]"):
        box.engine.run([in_stages(box)], box.options(), recorder=recorder)
    timeline = recorder.timeline
    assert timeline is not None
    assert not timeline.is_ended
    end = int(timeline.end_ps.max())
    wait = only_wait(timeline)
    assert span(wait) == (L2, end)
    place = f"{wait_for.__globals__['__file__']}:{line_of('isa.wait_ge', wait_for)}"
    assert timeline.wait_places(wait[None]) == [place]
    names = [timeline.stage_name(0, int(one["code"])) for one in timeline.stages]
    # Rank 1 has come to its second stage and ended there at once.
    assert names == ["first", "first"]
    assert sorted(timeline.stages["end"].tolist()) == [L2, end]


def outcome(recorder: Recorder | None) -> tuple[list[Any], bytes]:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    launch = box.launch(busy_programs(box, 7))
    found = box.engine.run([launch, launch], box.options(), recorder=recorder)
    memory = b"".join(box.view(rank, "recv").tobytes() for rank in range(4))
    parts = (found.start_ps, found.end_ps, found.port_bytes, found.num_events, found.num_rows)
    return [np.asarray(part).tolist() for part in parts], memory


def test_recording_changes_nothing() -> None:
    recorder = Recorder()
    assert outcome(recorder) == outcome(None)
    again = Recorder()
    outcome(again)
    one, other = recorder.timeline, again.timeline
    assert one is not None
    assert other is not None
    for name in ("waits", "stages", "passes", "hops"):
        assert len(getattr(one, name)) > 50
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert np.array_equal(one.start_ps, other.start_ps)


def test_ports_are_busy_for_their_bytes_at_their_rate() -> None:
    recorder = Recorder()
    (_, _, port_bytes, *_), _ = outcome(recorder)
    timeline = recorder.timeline
    assert timeline is not None
    for port in (state.NVL_OUT, state.NVL_IN, state.NIC_OUT, state.NIC_IN):
        for rank in range(4):
            begin, end, num_bytes = timeline.port_use(rank, port)
            assert num_bytes.sum() == port_bytes[rank][port] > 0
            assert (begin[1:] >= end[:-1]).all()
            if port != state.NIC_OUT:
                rate = NIC_MBPS if port == state.NIC_IN else LINK_MBPS
                expected = np.array([cost(size, rate) for size in num_bytes.tolist()])
                acks = end - begin - expected
                # What leaves may have had what acknowledges rows before it.
                assert (acks >= 0).all()
                assert port == state.NVL_OUT or not acks.any()


def test_waits_lie_in_their_stage() -> None:
    recorder = Recorder()
    outcome(recorder)
    timeline = recorder.timeline
    assert timeline is not None
    for wait in timeline.waits:
        own = timeline.stages
        for name in ("launch", "rank", "sm", "warp"):
            own = own[own[name] == wait[name]]
        assert ((own["begin"] <= wait["begin"]) & (wait["end"] <= own["end"])).any()


def test_what_finds_no_room_is_counted() -> None:
    whole, few = Recorder(), Recorder(max_records=10)
    assert outcome(few) == outcome(whole)
    assert whole.timeline is not None
    assert few.timeline is not None
    assert whole.timeline.num_dropped == 0
    kept = sum(len(getattr(few.timeline, name)) for name in ("waits", "passes", "hops"))
    assert 0 < kept <= 10
    everything = Recorder(max_records=10 + few.timeline.num_dropped)
    outcome(everything)
    assert everything.timeline is not None
    assert everything.timeline.num_dropped == 0
    short = Recorder(max_records=9 + few.timeline.num_dropped)
    outcome(short)
    assert short.timeline is not None
    assert short.timeline.num_dropped == 1


def test_only_some_ranks_are_recorded() -> None:
    whole, one = Recorder(), Recorder(ranks=[1])
    outcome(whole)
    outcome(one)
    everything, timeline = whole.timeline, one.timeline
    assert everything is not None
    assert timeline is not None
    assert timeline.ranks == (1,)
    for name in ("waits", "stages", "passes"):
        expected = getattr(everything, name)
        expected = expected[expected["rank"] == 1]
        assert np.array_equal(np.sort(getattr(timeline, name)), np.sort(expected))
    for port in range(state.HBM + 1):
        assert lists(*timeline.port_use(1, port)) == lists(*everything.port_use(1, port))
    assert len(timeline.hops) < len(everything.hops)
