"""Links as queues: rates, fairness, back-pressure, the window law, and what is counted."""

from typing import Any

import numpy as np
import pytest
from engine_world import (
    ACK_BYTES,
    FULL,
    LATENCY,
    LINK_MBPS,
    PACKET_BYTES,
    ROW,
    Programs,
    Sandbox,
    Step,
    cost,
    jain,
    over_link,
    through_sm,
)
from kernels_for_tests import PAUSE
from numba import njit

from comms.sim import state
from comms.sim.ports import meter

#: Enough warps for an SM's copy rate, enough SMs for the link.
SMS, WARPS = 6, 12


def flows(box: Sandbox, peers: dict[int, list[int]], num_rows: int) -> dict[Any, list[Step]]:
    """Return programs in which every warp of a rank sends `num_rows` to each peer in turn."""
    return {
        (rank, sm, warp): [
            box.copy(rank, peer, row=rank) for _ in range(num_rows) for peer in targets
        ]
        for rank, targets in peers.items()
        for sm in range(SMS)
        for warp in range(WARPS)
    }


def rate_of(num_bytes: int, picoseconds: int) -> float:
    """Return a rate as a part of the link's cap."""
    return num_bytes * 1e6 / picoseconds / LINK_MBPS


def test_one_flow_reaches_the_cap() -> None:
    box = Sandbox()
    outcome = box.run(flows(box, {0: [1]}, 60))
    num_bytes = SMS * WARPS * 60 * FULL
    assert 0.97 <= rate_of(num_bytes, int(outcome.end_ps[0, 0])) <= 1
    assert outcome.port_bytes[0, state.NVL_OUT] == num_bytes
    assert outcome.port_bytes[1, state.NVL_IN] == num_bytes
    assert outcome.port_bytes.sum() == 2 * num_bytes
    assert outcome.num_rows == SMS * WARPS * 60


@pytest.mark.parametrize("num_peers", [2, 7])
def test_fan_out_is_bound_by_the_one_egress(num_peers: int) -> None:
    box = Sandbox(ranks_per_node=8)
    num_rows = 60 // num_peers
    outcome = box.run(flows(box, {0: list(range(1, num_peers + 1))}, num_rows))
    num_bytes = SMS * WARPS * num_rows * num_peers * FULL
    assert 0.96 <= rate_of(num_bytes, int(outcome.end_ps[0, 0])) <= 1
    received = outcome.port_bytes[1 : num_peers + 1, state.NVL_IN]
    assert (received == num_bytes // num_peers).all()


@pytest.mark.parametrize("num_peers", [2, 7])
def test_incast_is_bound_by_the_one_ingress_and_fair(num_peers: int) -> None:
    box = Sandbox(ranks_per_node=8)
    num_rows = 84 // num_peers
    programs = flows(box, {rank: [0] for rank in range(1, num_peers + 1)}, num_rows)
    outcome = box.run(programs)
    ends = outcome.end_ps[0, 1 : num_peers + 1]
    num_bytes = SMS * WARPS * num_rows * num_peers * FULL
    assert 0.97 <= rate_of(num_bytes, int(ends.max())) <= 1
    assert jain(1 / ends) >= 0.98


def test_incast_is_fair_all_the_time() -> None:
    box = Sandbox(ranks_per_node=4)
    programs = flows(box, {1: [0], 2: [0], 3: [0]}, 20)
    sent = SMS * WARPS * 20 * FULL
    for _, ports in box.stepwise(programs, 500):
        out = ports["total_bytes"].reshape(4, -1)[1:, state.NVL_OUT]
        if 0.2 * sent < out.max() < 0.95 * sent:
            assert jain(out) >= 0.98


def test_incast_of_rows_of_two_sizes_starves_nobody() -> None:
    box = Sandbox(ranks_per_node=3)
    programs = flows(box, {1: [0]}, 10)
    big: Step = box.copy(2, 0, num_bytes=30 * ROW, row=100)
    programs |= {(2, sm, warp): [big] * 3 for sm in range(SMS) for warp in range(WARPS)}
    first_done = {}
    for now, ports in box.stepwise(programs, 200):
        out = ports["total_bytes"].reshape(3, -1)[:, state.NVL_OUT]
        for rank, total in ((1, SMS * WARPS * 10 * FULL), (2, SMS * WARPS * 90 * FULL)):
            if out[rank] == total:
                first_done.setdefault(rank, now)
    # The sender of the small rows waits at most for as many big ones.
    assert first_done[1] < first_done[2]


#: What acknowledges a row, which takes time of the other direction.
ANSWER = -(-FULL // PACKET_BYTES) * ACK_BYTES


def test_opposite_directions_share_what_acknowledges_rows_and_nothing_else() -> None:
    box = Sandbox()
    num_rows = SMS * WARPS * 20
    alone = box.run(flows(box, {0: [1]}, 20)).end_ps[0, 0]
    both = box.run(flows(box, {0: [1], 1: [0]}, 20)).end_ps[0]
    # The last rows of a direction are acknowledged when the other has ended.
    answers = num_rows * cost(ANSWER, LINK_MBPS)
    assert 0.9 * answers < both[0] - alone <= answers
    assert both[0] == both[1]


def test_flows_of_other_ranks_do_not_share() -> None:
    box = Sandbox(ranks_per_node=4)
    alone = box.run(flows(box, {0: [1]}, 20)).end_ps[0, 0]
    pairs = box.run(flows(box, {0: [1], 2: [3]}, 20)).end_ps[0]
    assert pairs[[0, 2]].tolist() == [alone] * 2


def test_what_acknowledges_a_row_goes_before_what_comes_later() -> None:
    box = Sandbox()
    arrival = through_sm(FULL) + over_link(FULL)
    # Rank 1's row comes to its port less than a nanosecond after rank 0's has arrived.
    pause = -(-over_link(FULL) // 1000)
    programs: Programs = {(0, 0, 0): [box.copy(0, 1)], (1, 0, 0): [(PAUSE, pause), box.copy(1, 0)]}
    end = int(box.run(programs).end_ps[0, 1])
    assert end == arrival + cost(ANSWER, LINK_MBPS) + over_link(FULL) + LATENCY


def test_ranks_that_all_start_with_the_same_peer_wait_for_it() -> None:
    num_ranks, num_rows = 4, 24
    box = Sandbox(ranks_per_node=num_ranks)

    def run(order: dict[int, list[int]]) -> int:
        programs = {
            (rank, sm, warp): [
                box.copy(rank, peer) for peer in peers for _ in range(num_rows) if peer != rank
            ]
            for rank, peers in order.items()
            for sm in range(SMS)
            for warp in range(WARPS)
        }
        return int(box.run(programs).end_ps.max())

    same = run({rank: list(range(num_ranks)) for rank in range(num_ranks)})
    rotated = run(
        {rank: [(rank + 1 + i) % num_ranks for i in range(num_ranks)] for rank in range(num_ranks)}
    )
    flow = cost(SMS * WARPS * num_rows * FULL, LINK_MBPS)
    answered = 1 + ANSWER / FULL
    assert rotated == pytest.approx((num_ranks - 1) * flow * answered, rel=0.05)
    # One destination after the other takes R - 1 flows. A rank sends nothing while it is itself
    # the destination, and is then one phase ahead of the others, which shortens the sum.
    assert 1.5 * rotated < same <= num_ranks * (num_ranks - 1) * flow * 1.05


@pytest.mark.parametrize("kind", [state.NVL_OUT, state.NVL_IN])
def test_a_full_queue_stalls_and_never_overflows(kind: int) -> None:
    box = Sandbox(ranks_per_node=4)
    limit = int(box.fabric.nvlink.queue_bytes.value)
    most = 0
    for _, ports in box.stepwise(flows(box, {1: [0, 2], 2: [0], 3: [0]}, 10), 7):
        queued = ports["queued"].reshape(4, -1)
        assert (queued >= 0).all()
        most = max(most, int(queued[:, kind].max()))
    assert limit - 2 * FULL < most <= limit
    assert (queued == 0).all()


def test_fetch_adds_leave_the_room_of_a_queue_as_it_was() -> None:
    from kernels_for_tests import FETCH_ADD

    box = Sandbox()
    programs = {
        (0, 0, warp): [(FETCH_ADD, 1, box.flag(0), 1, box.result(0))] * 20 for warp in range(4)
    }
    for _, ports in box.stepwise(programs, 3):
        assert (ports["queued"] >= 0).all()
    assert box.view(1, "flags", np.int64)[0] == 80


def test_what_ports_sent_keeps_the_window_law() -> None:
    box = Sandbox(ranks_per_node=4)
    log = []
    for now, ports in box.stepwise(flows(box, {1: [0, 2], 2: [0], 3: [0, 1]}, 6), 1):
        log.append((now, *ports["total_bytes"].reshape(4, -1)[:, : state.NVL_IN + 1].reshape(-1)))
        assert not ports["violations"].any()
    times, totals = np.array(log)[:, 0], np.array(log)[:, 1:]
    # Bytes in any window <= cap x window + one row: bytes - cap x time never rises by more.
    level = totals - times[:, None] * LINK_MBPS / 1e6
    rise = (level - np.minimum.accumulate(level, axis=0)).max()
    assert 0 < rise <= FULL + 1


@njit
def _meter(address: int, port: int, time: int, cost_ps: int) -> None:
    meter(address, port, time, cost_ps)


def test_the_meter_counts_what_breaks_the_window_law() -> None:
    ports = np.zeros(2, state.PORT)
    header = np.zeros(1, state.HEADER)
    header["ports"] = ports.ctypes.data
    address = int(header.ctypes.data)
    for time in (100, 200, 300, 450):
        _meter(address, 0, time, 100)
    assert ports["violations"].tolist() == [0, 0]
    assert ports["busy_ps"].tolist() == [400, 0]
    _meter(address, 0, 549, 100)
    assert ports["violations"].tolist() == [1, 0]
    _meter(address, 1, 100, 100)
    _meter(address, 1, 100, 1)
    assert ports["violations"].tolist() == [1, 1]


def test_every_byte_that_leaves_enters() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    programs: Programs = {
        **flows(box, {0: [1, 0], 3: [2]}, 2),
        (1, 0, 0): [box.put(1, peer, num_rows=3, channel=0) for peer in (2, 3, 3)],
    }
    sent = box.run(programs).port_bytes
    rows = SMS * WARPS * 2 * FULL
    assert sent[:, state.NVL_OUT].tolist() == [rows, 0, 0, rows]
    assert sent[:, state.NVL_IN].tolist() == [0, rows, rows, 0]
    assert sent[:, state.NIC_OUT].tolist() == [0, 9 * FULL, 0, 0]
    assert sent[:, state.NIC_IN].tolist() == [0, 0, 3 * FULL, 6 * FULL]
    assert sent[:, state.HBM].tolist() == [2 * rows, 0, 0, 0]
    assert LATENCY > 0
