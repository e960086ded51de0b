"""When writes can be seen: at arrival, not before; what overtakes what; what comes too late."""

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import (
    FULL,
    LATENCY,
    LINK_MBPS,
    NIC_LATENCY,
    NIC_MBPS,
    NIC_POST,
    ROW,
    SYNC,
    WORD,
    WORD_BYTES,
    WORD_OVER_LINK,
    Sandbox,
    Step,
    cost,
    over_link,
    through_sm,
    tick,
)

from comms.sim.state import NVL_OUT

POISON = -1


def first_word(box: Sandbox, rank: int = 0) -> int:
    return int(box.view(rank, "x", np.int64)[0])


def test_a_row_is_not_readable_before_it_arrives() -> None:
    box = Sandbox()
    arrival = through_sm(FULL) + over_link(FULL)
    before = arrival // 1000
    programs = {
        (0, 0, 0): [box.copy(0, 1)],
        (1, 0, 0): [(code.PAUSE, before), box.peek(1, 0), (code.PAUSE, 1), box.peek(1, 1)],
    }
    box.run(programs)
    assert list(box.results[:2]) == [POISON, first_word(box)]


def test_a_copy_reads_its_source_at_issue_and_a_bulk_copy_on_arrival() -> None:
    seen = {}
    for what in (code.COPY_ROW, code.COPY_ROW_BULK):
        box = Sandbox()
        poke: Step = (code.POKE, box.addr(0, "x"), 77)
        box.run({(0, 0, 0): [(what, *box.copy(0, 1)[1:]), poke]})
        seen[what] = int(box.view(1, "recv", np.int64)[0])
        old = int(Sandbox().view(0, "x", np.int64)[0])
    assert seen == {code.COPY_ROW: old, code.COPY_ROW_BULK: 77}


def test_a_release_makes_the_source_of_a_bulk_copy_free() -> None:
    box = Sandbox()
    step: Step = (code.COPY_ROW_BULK, *box.copy(0, 1)[1:])
    old = first_word(box)
    box.run({(0, 0, 0): [step, (code.FENCE,), (code.POKE, box.addr(0, "x"), 77)]})
    assert box.view(1, "recv", np.int64)[0] == old


def test_a_put_reads_its_source_until_it_has_completed() -> None:
    seen = []
    for waits in ([], [(code.PUT_WAIT, 0)]):
        box = Sandbox(num_nodes=2, ranks_per_node=1)
        old = first_word(box)
        box.run({(0, 0, 0): [box.put(0, 1, channel=0), *waits, (code.POKE, box.addr(0, "x"), 77)]})
        seen.append(int(box.view(1, "recv", np.int64)[0]))
    assert seen == [77, old]


def test_a_flag_that_no_release_precedes_overtakes_its_row() -> None:
    box = Sandbox(ranks_per_node=3)
    programs = {
        (0, 0, 0): [
            box.copy(0, 1),
            (code.STORE, 2, box.flag(0), 1),
            (code.STORE, 1, box.flag(0), 1),
        ],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0)],
        (2, 0, 0): [(code.WAIT_GE, box.flag(0), 1)],
    }
    ends = box.run(programs).end_ps[0]
    assert box.results[0] == POISON
    assert ends[1] == tick(through_sm(FULL) + WORD)
    # A flag for another rank has no row to overtake: it is behind the row in the port.
    row = cost(FULL, LINK_MBPS)
    assert ends[2] == tick(through_sm(FULL) + row + WORD_OVER_LINK)


def test_a_flag_that_overtakes_takes_its_way_all_the_same() -> None:
    ends = []
    for word in ([], [(code.STORE, 1, Sandbox().flag(0), 1)]):
        box = Sandbox()
        outcome = box.run({(0, 0, 0): [box.copy(0, 1), *word, (code.FENCE,)]})
        ends.append(int(outcome.end_ps[0, 0]))
        assert outcome.port_bytes[0, NVL_OUT] == FULL + WORD_BYTES * len(word)
    row = through_sm(FULL) + over_link(FULL)
    # The word is behind the row, and the fence hears of it last.
    assert ends == [row + LATENCY, row + cost(WORD_BYTES, LINK_MBPS) + LATENCY]
    assert box.view(1, "flags", np.int64)[0] == 1


def test_a_released_flag_is_behind_its_row() -> None:
    box = Sandbox()
    programs = {
        (0, 0, 0): [box.copy(0, 1), (code.FENCE,), (code.STORE, 1, box.flag(0), 1)],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0)],
    }
    end = box.run(programs).end_ps[0, 1]
    assert end == tick(through_sm(FULL) + over_link(FULL) + LATENCY + WORD_OVER_LINK)
    assert box.results[0] == first_word(box)


@pytest.mark.parametrize("fencing", [(0,), (1,), (0, 1)])
def test_a_fence_before_a_barrier_covers_the_flags_behind_it(fencing: tuple[int, ...]) -> None:
    box = Sandbox()
    fences: list[list[Step]] = [[(code.FENCE,)] if warp in fencing else [] for warp in range(2)]
    programs = {
        (0, 0, 0): [box.copy(0, 1), (code.BLOCK_SYNC,), *fences[0], (code.BLOCK_SYNC,)],
        (0, 0, 1): [
            (code.BLOCK_SYNC,),
            *fences[1],
            (code.BLOCK_SYNC,),
            (code.STORE, 1, box.flag(0), 1),
        ],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0)],
    }
    acknowledged = through_sm(FULL) + over_link(FULL) + LATENCY
    assert box.run(programs).end_ps[0, 1] == tick(acknowledged + SYNC + WORD_OVER_LINK)
    assert box.results[0] == first_word(box)


def test_a_local_flag_overtakes_a_local_row_unless_it_is_released() -> None:
    seen = []
    for what in (code.STORE, code.STORE_RELEASE):
        box = Sandbox(row_bytes=(ROW, 64 * FULL))
        programs = {
            (0, 0, 0): [box.copy(0, 0), (what, 0, box.flag(0), 1)],
            (0, 1, 0): [(code.SPIN, box.flag(0), 1), box.peek(0, 0)],
        }
        box.run(programs)
        seen.append(int(box.results[0]))
    assert seen == [POISON, first_word(Sandbox())]


@pytest.mark.parametrize(("channel", "covered"), [(1, True), (2, False)])
def test_a_signal_covers_the_puts_of_its_channel_only(channel: int, covered: bool) -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    programs = {
        (0, 0, 0): [
            box.put(0, 1, num_rows=40, row=1, channel=1),
            box.put(0, 1, num_rows=40, row=100, channel=1),
            (code.PUT_SIGNAL, 1, box.flag(0), 1, channel),
        ],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0, row=100)],
    }
    assert 40 * cost(FULL, NIC_MBPS) > 2 * NIC_POST
    box.run(programs)
    assert box.results[0] == (first_word(box) if covered else POISON)


def test_signals_of_a_channel_arrive_once_each() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    programs: dict[tuple[int, int, int], list[Step]] = {}
    for rank in (0, 1):
        for channel in range(4):
            steps = programs[rank, 0, channel] = []
            for row in range(5):
                steps.append(box.put(rank, 2, num_rows=1 + 7 * row, channel=channel))
                steps.append((code.PUT_SIGNAL, 2, box.flag(channel), 1, channel))
    programs[2, 0, 0] = [(code.WAIT_GE, box.flag(channel), 10) for channel in range(4)]
    box.run(programs)
    assert list(box.view(2, "flags", np.int64)[:5]) == [10, 10, 10, 10, 0]


def test_a_write_after_the_launch_it_belongs_to_is_counted_and_dropped() -> None:
    box = Sandbox()
    launch = box.launch({(0, 0, 0): [box.copy(0, 1), box.copy(0, 0)], (1, 0, 0): []})
    outcome = box.engine.run([launch], box.options(recv=0))
    assert list(outcome.num_late) == [0, 1]
    assert (box.view(1, "recv") == 0xFF).all()
    assert box.view(0, "recv", np.int64)[0] == first_word(box)


def test_a_write_before_the_last_launch_that_is_judged_is_not_late() -> None:
    box = Sandbox()
    launch = box.launch({(0, 0, 0): [box.copy(0, 1)], (1, 0, 0): []})
    outcome = box.engine.run([launch, launch], box.options(recv=1))
    # Rank 1 waits for nobody: its two launches end long before the second row.
    assert list(outcome.num_late) == [0, 2]
    slow = box.launch({(0, 0, 0): [box.copy(0, 1)], (1, 0, 0): [(code.PAUSE, 9000)]})
    outcome = box.engine.run([slow, slow], box.options(recv=1))
    assert list(outcome.num_late) == [0, 0]


def test_a_launch_ends_with_its_last_acknowledged_write() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    late = box.launch({(0, 0, 0): [box.put(0, 1, channel=0)], (1, 0, 0): []})
    outcome = box.engine.run([late], box.options(recv=0))
    assert list(outcome.num_late) == [0, 1]
    assert outcome.end_ps[0, 0] == NIC_POST < NIC_LATENCY
