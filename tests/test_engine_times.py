"""What instructions cost: exact virtual times, computed here from the profile's constants."""

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import (
    FENCE,
    FULL,
    GAP,
    HBM_MBPS,
    L2,
    LATENCY,
    LINK_MBPS,
    NIC_LATENCY,
    NIC_MBPS,
    NIC_MESSAGE,
    NIC_POST,
    ROW,
    SM_MBPS,
    SYNC,
    WORD,
    WORD_OVER_LINK,
    Sandbox,
    Step,
    cost,
    over_link,
    through_sm,
    tick,
)


def end_of(box: Sandbox, programs: dict[tuple[int, int, int], list[Step]], rank: int = 0) -> int:
    return int(box.run(programs).end_ps[0, rank])


def test_a_row_takes_its_sm_the_link_and_the_way_back_of_its_acknowledgement() -> None:
    box = Sandbox()
    arrival = through_sm(FULL) + over_link(FULL)
    assert end_of(box, {(0, 0, 0): [box.copy(0, 1)]}) == arrival + LATENCY
    assert np.array_equal(box.view(1, "recv")[:ROW], box.view(0, "x")[:ROW])
    assert (box.view(1, "recv")[ROW:] == 0xFF).all()


def test_several_rows_in_one_copy_are_charged_whole_rows() -> None:
    box = Sandbox()
    sent = through_sm(3 * FULL) + over_link(3 * FULL)
    assert end_of(box, {(0, 0, 0): [box.copy(0, 1, num_bytes=3 * ROW)]}) == sent + LATENCY


def test_a_local_row_is_read_and_written_in_memory() -> None:
    box = Sandbox()
    arrival = through_sm(FULL) + cost(2 * FULL, HBM_MBPS) + L2
    assert end_of(box, {(0, 0, 0): [box.copy(0, 0)]}) == arrival + L2
    assert np.array_equal(box.view(0, "recv")[:ROW], box.view(0, "x")[:ROW])


def test_bulk_copies_have_their_own_constants() -> None:
    box = Sandbox()
    step = (code.COPY_ROW_BULK, *box.copy(0, 1)[1:])
    passed = max(cost(FULL, 60_000), 40_000 + 900_000)
    assert end_of(box, {(0, 0, 0): [step]}) == passed + over_link(FULL) + LATENCY


@pytest.mark.parametrize(("rank", "way"), [(0, L2), (1, WORD_OVER_LINK)])
@pytest.mark.parametrize("what", [code.STORE, code.ADD])
def test_a_word_takes_its_way_and_back(rank: int, way: int, what: int) -> None:
    box = Sandbox()
    box.view(rank, "flags", np.int64)[2] = 40
    back = L2 if rank == 0 else LATENCY
    assert end_of(box, {(0, 0, 0): [(what, rank, box.flag(2), 2)]}) == way + back
    assert box.view(rank, "flags", np.int64)[2] == (2 if what == code.STORE else 42)


@pytest.mark.parametrize(("rank", "trip"), [(0, 2 * L2), (1, WORD_OVER_LINK + LATENCY)])
def test_fetch_add_waits_for_its_reply(rank: int, trip: int) -> None:
    box = Sandbox()
    box.view(rank, "flags", np.int64)[2] = 40
    step = (code.FETCH_ADD, rank, box.flag(2), 2, box.result(0))
    assert end_of(box, {(0, 0, 0): [step]}) == WORD + trip
    assert box.results[0] == 40
    assert box.view(rank, "flags", np.int64)[2] == 42


def test_fetch_adds_of_many_warps_see_every_value_once() -> None:
    box = Sandbox()
    programs = {
        (rank, sm, warp): [
            (code.FETCH_ADD, 1, box.flag(0), 1, box.result(8 * rank + 4 * sm + warp))
        ]
        for rank in range(2)
        for sm in range(2)
        for warp in range(4)
    }
    box.run(programs)
    assert sorted(box.results[:16]) == list(range(16))


def test_a_wait_that_is_over_costs_one_load() -> None:
    box = Sandbox()
    assert end_of(box, {(0, 0, 0): [(code.WAIT_GE, box.flag(0), 0)]}) == L2


@pytest.mark.parametrize("delay_ns", [0, 100, 149, 150, 449, 450, 1000])
@pytest.mark.parametrize("any_of", [False, True])
def test_a_wait_ends_with_its_next_poll(delay_ns: int, any_of: bool) -> None:
    box = Sandbox()
    arrival = 1000 * delay_ns + WORD_OVER_LINK
    values = np.array([1, 1], np.int64)
    wait: Step = (code.WAIT_GE, box.flag(1), 1)
    if any_of:
        wait = (code.WAIT_ANY, box.flag(0), 8, int(values.ctypes.data), 2, box.result(0))
    programs = {
        (0, 0, 0): [(code.PAUSE, delay_ns), (code.STORE, 1, box.flag(1), 1)],
        (1, 0, 0): [wait],
    }
    assert end_of(box, programs, rank=1) == tick(arrival)
    assert box.results[0] == (1 if any_of else -7)


def test_wait_any_sleeps_on_while_no_value_is_reached() -> None:
    box = Sandbox()
    values = np.array([5, 5, 5], np.int64)
    programs = {
        (0, 0, 0): [
            (code.STORE, 1, box.flag(0), 4),
            (code.PAUSE, 5000),
            (code.STORE, 1, box.flag(2), 5),
        ],
        (1, 0, 0): [(code.WAIT_ANY, box.flag(0), 8, int(values.ctypes.data), 3, box.result(0))],
    }
    assert end_of(box, programs, rank=1) == tick(5_000_000 + WORD + WORD_OVER_LINK)
    assert box.results[0] == 2


@pytest.mark.parametrize(("first", "found"), [(0, 0), (1, 2), (2, 2), (3, 0)])
def test_wait_any_prefers_the_next_word_from_one_on(first: int, found: int) -> None:
    box = Sandbox()
    values = np.array([5, 5, 5], np.int64)
    box.view(1, "flags", np.int64)[:3] = (5, 4, 6)
    wait = (code.WAIT_ANY, box.flag(0), 8, int(values.ctypes.data), 3, box.result(0), first)
    assert end_of(box, {(1, 0, 0): [wait]}, rank=1) == L2 + WORD
    assert box.results[0] == found


def test_every_waiter_of_a_flag_wakes_at_its_own_value() -> None:
    box = Sandbox(ranks_per_node=4)
    programs: dict[tuple[int, int, int], list[Step]] = {
        (0, 0, 0): [
            step for _ in range(3) for step in ((code.ADD, 1, box.flag(0), 1), (code.PAUSE, 2000))
        ]
    }
    for warp in range(3):
        programs[1, 0, warp] = [
            (code.WAIT_GE, box.flag(0), warp + 1),
            (code.STORE, 2, box.flag(warp), 1),
        ]
    programs[3, 0, 0] = []
    assert end_of(box, programs, rank=1) == tick(2 * (WORD + 2_000_000) + WORD_OVER_LINK) + (
        WORD_OVER_LINK + LATENCY
    )
    assert list(box.view(2, "flags", np.int64)[:4]) == [1, 1, 1, 0]


def test_a_spinning_load_acquire_lets_the_others_run() -> None:
    box = Sandbox()
    programs = {
        (0, 0, 0): [(code.SPIN, box.flag(0), 1)],
        (0, 0, 1): [(code.PAUSE, 1000), (code.STORE, 0, box.flag(0), 1)],
    }
    loads = -(-(1_000_000 + L2) // L2)
    assert end_of(box, programs) == max(loads * L2, 1_000_000 + 2 * L2)


def test_a_loop_of_relaxed_loads_lets_the_others_run() -> None:
    box = Sandbox()
    programs = {
        (0, 0, 0): [(code.SPIN_RELAXED, box.flag(0), 1)],
        (0, 0, 1): [(code.PAUSE, 1000), (code.STORE, 0, box.flag(0), 1)],
    }
    end = end_of(box, programs)
    assert 1_000_000 + 2 * L2 <= end <= 1_000_000 + L2 + 4 * L2


def test_a_warp_sees_its_own_words() -> None:
    box = Sandbox()
    steps: list[Step] = []
    for index in range(4):
        steps += [
            (code.STORE, 0, box.flag(0), index),
            (code.LOAD_ACQUIRE if index % 2 else code.LOAD, box.flag(0), box.result(index)),
        ]
    programs = {(0, 0, warp): steps if warp == 3 else steps[:1] * 3 for warp in range(4)}
    box.run(programs)
    assert list(box.results[:4]) == [0, 1, 2, 3]


def test_a_block_sees_its_words_after_it_has_met() -> None:
    box = Sandbox()
    programs = {
        (0, 0, 0): [(code.STORE, 0, box.flag(0), 9), (code.BLOCK_SYNC,)],
        (0, 0, 1): [(code.BLOCK_SYNC,), (code.LOAD, box.flag(0), box.result(0))],
    }
    box.run(programs)
    assert box.results[0] == 9


def test_block_sync_ends_after_the_last_warp_came() -> None:
    box = Sandbox()
    programs = {
        (0, 0, warp): [(code.PAUSE, 100 * warp), (code.BLOCK_SYNC,), (code.BLOCK_SYNC,)]
        for warp in range(5)
    }
    assert end_of(box, programs) == 400_000 + 2 * SYNC


def test_block_sync_does_not_wait_for_warps_that_have_ended() -> None:
    box = Sandbox()
    programs = {(0, 0, 0): [(code.BLOCK_SYNC,)], (0, 0, 1): [(code.PAUSE, 700)]}
    assert end_of(box, programs) == 700_000 + SYNC


def test_a_fence_with_nothing_outstanding_costs_a_fence() -> None:
    box = Sandbox()
    assert end_of(box, {(0, 0, 0): [(code.FENCE,)]}) == FENCE


def test_a_fence_sleeps_until_the_row_is_acknowledged() -> None:
    box = Sandbox()
    sent = through_sm(FULL) + over_link(FULL) + LATENCY
    steps = [box.copy(0, 1), (code.FENCE,), (code.PAUSE, 3)]
    assert end_of(box, {(0, 0, 0): steps}) == sent + 3000
    # A fence whose writes are acknowledged before it ends costs a fence.
    steps = [box.copy(0, 1), (code.PAUSE, 1200), (code.FENCE,), (code.PAUSE, 3)]
    assert end_of(box, {(0, 0, 0): steps}) == through_sm(FULL) + 1_200_000 + FENCE + 3000


def test_store_release_is_a_fence_and_a_store() -> None:
    box = Sandbox()
    sent = through_sm(FULL) + over_link(FULL) + LATENCY
    programs = {
        (0, 0, 0): [box.copy(0, 1), (code.STORE_RELEASE, 1, box.flag(0), 1)],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1)],
    }
    outcome = box.run(programs)
    arrival = sent + WORD_OVER_LINK
    assert outcome.end_ps[0].tolist() == [arrival + LATENCY, tick(arrival)]


def test_a_release_covers_other_warps_only_after_a_block_sync() -> None:
    box = Sandbox()
    sent = through_sm(FULL)
    apart = {
        (0, 0, 0): [box.copy(0, 1)],
        (0, 0, 1): [(code.STORE_RELEASE, 1, box.flag(0), 1)],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0)],
    }
    assert end_of(box, apart, rank=1) == tick(FENCE + WORD_OVER_LINK)
    assert box.results[0] == -1
    box = Sandbox()
    met = {
        (0, 0, 0): [box.copy(0, 1), (code.BLOCK_SYNC,)],
        (0, 0, 1): [(code.BLOCK_SYNC,), (code.STORE_RELEASE, 1, box.flag(0), 1)],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 1), box.peek(1, 0)],
    }
    acknowledged = sent + over_link(FULL) + LATENCY
    assert end_of(box, met, rank=1) == tick(acknowledged + WORD_OVER_LINK)
    assert box.results[0] == box.view(0, "x", np.int64)[0]


def test_a_remote_reduction_pays_requests_rows_and_round_trips() -> None:
    box = Sandbox(row_bytes=(ROW, ROW))
    rows = np.zeros(1, np.int32)
    ranks = np.ones(1, np.int32)
    box.view(1, "x", np.uint16)[:32] = 0x3F80
    step = (
        code.REDUCE_ROWS,
        box.addr(0, "out"),
        1,
        int(ranks.ctypes.data),
        int(rows.ctypes.data),
        box.at("x"),
        ROW,
    )
    read = 700_000 + 2 * LATENCY
    written = cost(ROW, HBM_MBPS) + 2 * L2
    outcome = box.run({(0, 0, 0): [step]})
    assert outcome.end_ps[0, 0] == read + written
    assert (box.view(0, "out", np.uint16)[:32] == 0x3F80).all()
    # A request of one flit leaves rank 0, the row comes back.
    assert list(outcome.port_bytes[0, :2]) == [16, ROW]
    assert list(outcome.port_bytes[1, :2]) == [ROW, 16]


def test_a_put_costs_its_post_and_the_network() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    arrival = NIC_POST + NIC_LATENCY + cost(FULL, NIC_MBPS)
    steps = [box.put(0, 1, channel=0), (code.PUT_WAIT, 0)]
    assert end_of(box, {(0, 0, 0): steps}) == arrival + NIC_LATENCY
    # The launch does not wait for what its warps have given to the NIC.
    assert end_of(box, {(0, 0, 0): steps[:1]}) == NIC_POST


def test_a_wait_returns_the_word_that_its_last_poll_saw() -> None:
    box = Sandbox()
    add = (code.ADD, 0, box.flag(0), 2)
    wait = (code.WAIT_GE, box.flag(0), 1, box.result(0))
    box.run({(0, 0, 0): [wait], (0, 1, 0): [add, add]})
    assert box.results[0] == 4


def test_a_put_comes_after_what_its_warp_has_written() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    store = (code.STORE, 0, box.flag(0), 1)
    put, signal = box.put(0, 1, channel=0), (code.PUT_SIGNAL, 1, box.flag(1), 1, 0)
    (alone,) = {end_of(box, {(0, 0, 0): [step]}) for step in (put, signal)}
    assert alone == NIC_POST
    released = max(WORD + FENCE, 2 * L2)
    for step in (put, signal):
        assert end_of(box, {(0, 0, 0): [store, step]}) == released + NIC_POST
        # What has been acknowledged need not be released again.
        assert end_of(box, {(0, 0, 0): [store, (code.FENCE,), step]}) == released + NIC_POST
        # After a pause the word has arrived, and what acknowledges it is on its way.
        steps = [store, (code.PAUSE, 300), step]
        assert L2 < WORD + 300_000 < 2 * L2
        assert end_of(box, {(0, 0, 0): steps}) == WORD + 300_000 + FENCE + NIC_POST


def test_rows_of_one_request_are_posted_once() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    wait = (code.PUT_WAIT, 0)
    leaves = NIC_POST + 3 * cost(FULL, NIC_MBPS)
    assert end_of(box, {(0, 0, 0): [box.put_rows(1, [2, 0, 5]), wait]}) == leaves + 2 * NIC_LATENCY
    rows = box.view(0, "x")[: 6 * ROW].reshape(6, ROW)
    assert np.array_equal(box.view(1, "recv")[: 3 * ROW].reshape(3, ROW), rows[[2, 0, 5]])


def test_a_nic_sends_so_many_messages_a_second() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1, row_bytes=(ROW, ROW))
    num_puts = 60
    steps = [box.put(0, 1, channel=0), (code.PUT_WAIT, 0)]
    programs = {(0, sm, warp): steps for sm in range(6) for warp in range(10)}
    arrival = NIC_POST + num_puts * NIC_MESSAGE + NIC_LATENCY
    assert cost(ROW, NIC_MBPS) < NIC_MESSAGE
    assert end_of(box, programs) == arrival + NIC_LATENCY


def test_a_signal_is_a_message_behind_its_puts() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    programs = {
        (0, 0, 0): [box.put(0, 1, num_rows=20, channel=1), (code.PUT_SIGNAL, 1, box.flag(0), 3, 1)],
        (1, 0, 0): [(code.WAIT_GE, box.flag(0), 3)],
    }
    leaves = NIC_POST + cost(20 * FULL, NIC_MBPS)
    assert end_of(box, programs, rank=1) == tick(leaves + NIC_MESSAGE + NIC_LATENCY)
    alone = {**programs, (0, 0, 0): [(code.PUT_SIGNAL, 1, box.flag(1), 3, 1)]}
    alone[1, 0, 0] = [(code.WAIT_GE, box.flag(1), 3)]
    assert end_of(box, alone, rank=1) == tick(NIC_POST + NIC_MESSAGE + NIC_LATENCY)


@pytest.mark.parametrize("num_warps", [1, 2, 4])
def test_few_warps_are_bound_by_their_bytes_in_flight(num_warps: int) -> None:
    box = Sandbox()
    num_rows = 6
    programs = {
        (0, 0, warp): [box.copy(0, 1, row=warp * num_rows + row) for row in range(num_rows)]
        for warp in range(num_warps)
    }
    # All warps send at the same instants, so the last row of a batch waits for the link.
    queue = num_warps * cost(FULL, LINK_MBPS)
    expected = num_rows * through_sm(FULL) + LATENCY + queue + LATENCY
    assert end_of(box, programs) == expected


@pytest.mark.parametrize("num_sms", [1, 2])
def test_many_warps_share_the_copy_rate_of_their_sm(num_sms: int) -> None:
    box = Sandbox()
    num_warps, num_rows = 16, 5
    programs = {
        (0, sm, warp): [box.copy(0, 1) for _ in range(num_rows)]
        for sm in range(num_sms)
        for warp in range(num_warps)
    }
    assert num_warps * cost(FULL, SM_MBPS) > through_sm(FULL)
    passed = num_warps * num_rows * cost(FULL, SM_MBPS)
    queue = num_sms * cost(FULL, LINK_MBPS)
    assert end_of(box, programs) == passed + LATENCY + queue + LATENCY


def test_launches_follow_each_other_and_ranks_start_with_their_skew() -> None:
    box = Sandbox()
    launch = box.launch({(0, 0, 0): [(code.PAUSE, 50)], (1, 0, 0): [(code.PAUSE, 80)]})
    options = box.options()
    skewed = type(options)(
        slot_bytes=options.slot_bytes,
        transfers_per_warp=12,
        num_channels=4,
        skew_ps=np.array([7_000, 0], np.int64),
    )
    outcome = box.engine.run([launch, launch], skewed)
    assert outcome.start_ps.tolist() == [[7_000, 0], [57_000 + GAP, 80_000 + GAP]]
    assert outcome.end_ps.tolist() == [[57_000, 80_000], [107_000 + GAP, 160_000 + GAP]]
