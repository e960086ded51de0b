"""Named barriers, waits for many words, shared reductions: what they cost and mean."""

import re

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import (
    FENCE,
    FULL,
    L2,
    LATENCY,
    ROW,
    SM_MBPS,
    SYNC,
    WORD,
    WORD_OVER_LINK,
    Programs,
    Sandbox,
    Step,
    cost,
    over_link,
    through_sm,
    tick,
)
from test_engine_errors import failure, line_of

from comms.errors import EpbenchError, TimeoutFailure
from kernels.isa import NUM_GROUPS


def end_of(box: Sandbox, programs: Programs, rank: int = 0) -> int:
    return int(box.run(programs).end_ps[0, rank])


def group(index: int, num_warps: int) -> Step:
    return (code.GROUP_SYNC, index, num_warps)


def test_a_group_goes_on_after_its_last_warp_came() -> None:
    box = Sandbox()
    programs = {
        (0, 0, warp): [(code.PAUSE, 100 * warp), group(3, 4), group(3, 4)] for warp in range(4)
    }
    assert end_of(box, programs) == 300_000 + 2 * SYNC


def test_groups_of_a_block_and_of_other_blocks_do_not_meet() -> None:
    box = Sandbox()
    values = np.array([2], np.int64)
    programs: dict[tuple[int, int, int], list[Step]] = {}
    for sm in range(2):
        for warp in range(4):
            index = 1 + warp // 2
            seen = (code.FETCH_ADD, 0, box.flag(4 * sm + index), 1, box.result(4 * sm + warp))
            # Group 2 of SM 0 is late; nobody else is.
            late: Step = (code.PAUSE, 50_000 if (sm, index) == (0, 2) else 0)
            programs[0, sm, warp] = [late, group(index, 2), seen]
    programs[1, 0, 0] = []
    programs[0, 1, 3].append((code.LOAD, box.flag(2), box.result(20)))
    box.run(programs)
    assert values[0] == 2
    # When SM 1 was done, group 2 of SM 0 had not met.
    assert box.results[20] == 0
    assert sorted(box.results[:8].tolist()) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("meets", [True, False])
def test_a_release_covers_the_writes_of_its_group_only_after_they_have_met(meets: bool) -> None:
    box = Sandbox()
    meet = [group(5, 2)] if meets else []
    release: Step = (code.STORE_RELEASE, 1, box.flag(0), 1)
    programs: dict[tuple[int, int, int], list[Step]] = {
        (0, 0, 0): [box.copy(0, 1), *meet],
        (0, 0, 1): [*meet, release],
        # Another group's writes are not waited for.
        (0, 0, 2): [group(6, 1), *[box.copy(0, 1, row=row) for row in range(2, 12)]],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0), box.peek(1, 1, row=11)],
    }
    arrived = end_of(box, programs, rank=1)
    first = box.view(0, "x", np.int64)[0]
    if meets:
        assert box.results[:2].tolist() == [first, -1]
        assert arrived > through_sm(FULL) + over_link(FULL) + LATENCY
    else:
        assert arrived == tick(FENCE + WORD_OVER_LINK)
        assert box.results[0] == -1


def test_a_group_that_never_fills_is_reported_by_its_line() -> None:
    box = Sandbox()
    programs = {(1, 2, warp): [group(7, 3)] for warp in range(2)}
    with pytest.raises(TimeoutFailure) as raised:
        box.run(programs)
    line = line_of("isa.group_sync", code.run_step)
    assert re.search(
        rf"rank 1 sm 2 warp 0 and 1 more like it: .*:{line} waits for the other warps of its group",
        str(raised.value),
    )


@pytest.mark.parametrize("index", [-1, 0, NUM_GROUPS, 1 << 40])
def test_a_group_must_exist(index: int) -> None:
    sentence = failure(Sandbox(), [group(index, 1)])
    assert sentence.startswith(f"synchronises with group {index}: groups go from 1 to 15")


def test_a_warp_stays_in_one_group() -> None:
    box = Sandbox()
    sentence = failure(box, [group(2, 1), group(2, 1), group(3, 1)])
    assert sentence.startswith("synchronises with group 3: groups go from 1 to 15")
    assert "a warp stays in one" in sentence
    # Of a launch: the next may use it as it likes.
    launches = [box.launch({(0, 0, 0): [group(index, 1)]}) for index in (2, 3)]
    box.engine.run(launches, box.options())


def test_the_least_of_words_costs_a_load_and_a_turn_for_each_32() -> None:
    box = Sandbox()
    words = box.view(0, "flags", np.int64)
    words[:70] = np.arange(70)[::-1] + 5
    words[1::2] = -9
    step: Step = (code.MIN_WORDS, box.flag(0), 16, 35, box.result(0))
    assert end_of(box, {(0, 0, 0): [step]}) == L2 + 2 * WORD
    assert box.results[0] == words[0:70:2].min() == 6


def test_a_wait_for_all_words_ends_with_the_poll_after_the_last() -> None:
    box = Sandbox()
    box.view(1, "flags", np.int64)[0] = 9
    arrival = 2_000_000 + WORD_OVER_LINK
    programs = {
        (0, 0, 0): [(code.PAUSE, 2000), (code.STORE, 1, box.flag(2), 3)],
        (0, 0, 1): [(code.PAUSE, 700), (code.STORE, 1, box.flag(4), 3)],
        (1, 0, 0): [(code.WAIT_ALL, box.flag(0), 16, 3, 3)],
    }
    assert end_of(box, programs, rank=1) == tick(arrival)
    assert end_of(Sandbox(), {(0, 0, 0): [(code.WAIT_ALL, box.flag(0), 8, 33, 0)]}) == L2 + 2 * WORD
    assert end_of(Sandbox(), {(0, 0, 0): [(code.WAIT_ALL, box.flag(0), 8, 0, 1)]}) == L2


def test_a_wait_for_all_words_names_the_one_that_is_missing() -> None:
    box = Sandbox()
    box.view(1, "flags", np.int64)[:3] = 5, 4, 5
    with pytest.raises(TimeoutFailure) as raised:
        box.run({(1, 0, 0): [(code.WAIT_ALL, box.flag(0), 8, 3, 5)]})
    line = line_of("isa.wait_all", code.run_step)
    assert f":{line} waits for flags[1] >= 5, sees 4" in str(raised.value)
    with pytest.raises(EpbenchError, match="of region flags"):
        box.run({(1, 0, 0): [(code.WAIT_ALL, box.flag(510), 8, 3, 5)]})


def test_a_scan_of_words_costs_one_load_and_its_steps() -> None:
    box = Sandbox()
    box.view(0, "flags", np.int64)[:33] = 7 << 32 | 2
    step: Step = (code.SCAN_WORDS, box.flag(0), 33, box.addr(0, "out"))
    assert end_of(box, {(0, 0, 0): [step]}) == L2 + 12 * WORD
    assert box.view(0, "out", np.int32)[:34].tolist() == list(range(0, 67, 2))


@pytest.mark.parametrize("num_warps", [1, 2, 4])
def test_warps_that_share_a_reduction_write_what_one_writes_in_less_time(num_warps: int) -> None:
    box = Sandbox()
    rng = np.random.default_rng(3)
    values = rng.normal(size=4 * ROW).astype(np.float32).view(np.uint32) >> 16
    box.view(0, "x", np.uint16)[: len(values)] = values
    rows = np.array([4, 0, 2], np.int32)
    weights = np.array([0.5, -1.25, 3.0], np.float32)
    step: Step = (
        *(code.REDUCE_COLUMNS, box.addr(0, "out"), len(rows), int(rows.ctypes.data)),
        *(box.at("x"), ROW, int(weights.ctypes.data), num_warps),
    )
    end = end_of(box, {(0, 0, warp): [step] for warp in range(num_warps)})
    source = box.view(0, "x", np.uint16)[: 5 * ROW // 2].astype(np.uint32) << 16
    terms = source.view(np.float32).reshape(5, -1)[rows].astype(np.float64)
    # One multiplication and one fma may each be off by half a unit of FP32, BF16 has 8 bits.
    found = (box.view(0, "out", np.uint16)[: ROW // 2].astype(np.uint32) << 16).view(np.float32)
    assert found == pytest.approx((weights[:, None] * terms).sum(axis=0), rel=2**-7, abs=1e-3)
    share = FULL // num_warps
    latency = 60_000 + -(-3 * share // 4096) * 700_000
    passed = max(latency, num_warps * cost(3 * share, SM_MBPS))
    assert 0 <= end - passed <= 2 * L2 + cost(8 * FULL, 3_350_000)
