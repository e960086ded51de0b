"""What a kernel does wrong ends in one sentence: who, where, what it waited for."""

import ctypes
import inspect
import re
from pathlib import Path

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import FULL, REGIONS, ROW, Sandbox, Step, entry

from comms.errors import EpbenchError, TimeoutFailure, UsageError
from comms.fabric import load_fabric
from comms.fiber import STACK_BYTES, Stacks
from comms.sim import engine
from comms.sim.engine import Launch
from kernels.isa import MOST_SEGMENTS

X = 0x1000


def line_of(text: str, function: object) -> int:
    """Return the line of the only place of a function that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    found = [first + index for index, line in enumerate(lines) if text in line]
    assert len(found) == 1, found
    return found[0]


def failure(box: Sandbox, steps: list[Step]) -> str:
    """Return the sentence of a program that fails on warp 1 of SM 2 of the last rank."""
    with pytest.raises(EpbenchError) as raised:
        box.run({(box.world_size - 1, 2, 1): steps})
    assert not isinstance(raised.value, TimeoutFailure)
    who = f"test: rank {box.world_size - 1} sm 2 warp 1 "
    assert str(raised.value).startswith(who)
    return str(raised.value).removeprefix(who)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([(code.STORE, 0, 1 << 40, 1)], "accesses rank 0 at byte .* of region out of 65536 bytes"),
        ([(code.STORE, 0, -8, 1)], "accesses rank 0 at offset -8 of its window"),
        ([(code.WAIT_GE, -8, 1)], "accesses rank 1 at offset -8 of its window"),
        ([(code.LOAD, 1 << 40, 0)], "accesses rank 1 at byte .* of region out of 65536 bytes"),
        ([(code.COPY_ROW, 2, 0, X, 16)], "addresses rank 2, which does not exist"),
        ([(code.ADD, -1, 0, 1)], "addresses rank -1, which does not exist"),
        ([(code.COPY_ROW, 0, 0, X, 1 << 15)], "copies 32768 bytes at once, more than the 16384"),
        ([(code.COPY_ROW, 0, 0, X, -16)], "accesses rank 0 at offset -16 of its window"),
        ([(code.DIVIDE, 1, 0)], r"raised an exception \(division by zero"),
    ],
)
def test_a_mistake_names_its_warp_and_its_place(steps: list[Step], sentence: str) -> None:
    assert re.match(sentence, failure(Sandbox(), steps))


def test_an_overrun_names_the_region_and_the_byte_it_reaches() -> None:
    box = Sandbox()
    end = box.at("recv", REGIONS["recv"] - ROW)
    step = (code.COPY_ROW, 0, end, box.addr(1, "x"), 2 * ROW)
    sentence = failure(box, [(code.COPY_ROW, 0, end, box.addr(1, "x"), ROW), step])
    assert sentence == (
        f"accesses rank 0 at byte {REGIONS['recv'] + ROW} of region recv of {REGIONS['recv']} bytes"
    )


def test_a_step_past_a_region_is_not_taken_for_the_next() -> None:
    box = Sandbox()
    past = box.at("recv", REGIONS["recv"])
    assert "of region recv" in failure(box, [(code.STORE, 0, past, 1)])


@pytest.mark.parametrize("what", [code.STORE, code.ADD, code.FETCH_ADD, code.COPY_ROW])
def test_loads_and_stores_do_not_reach_another_node(what: int) -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    sentence = failure(box, [(what, 1, box.flag(0), box.addr(3, "x"), ROW)])
    assert sentence.startswith("addresses rank 1, to which this instruction has no path")


def test_a_remote_row_of_another_node_cannot_be_reduced() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    rank = np.zeros(1, np.int32)
    address = int(rank.ctypes.data)
    step = (code.REDUCE_ROWS, box.addr(3, "out"), 1, address, address, box.at("x"), ROW)
    assert failure(box, [step]).startswith("addresses rank 0, to which this instruction")


def test_puts_do_not_reach_the_own_node() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    for rank in (2, 3):
        sentence = failure(box, [box.put(3, rank, channel=0)])
        assert sentence.startswith(f"addresses rank {rank}, to which this instruction has no path")


def test_a_put_crosses_rails_only_where_the_fabric_allows_it() -> None:
    forbidden = load_fabric("h800", cross_rail="forbidden")
    box = Sandbox(num_nodes=2, ranks_per_node=2, fabric=forbidden)
    assert "rank 0, to which" in failure(box, [box.put(3, 0, channel=0)])
    box.run({(3, 0, 0): [box.put(3, 1, channel=0)]})
    assert np.array_equal(box.view(1, "recv")[:ROW], box.view(3, "x")[:ROW])
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    box.run({(3, 0, 0): [box.put(3, 0, channel=0)]})
    assert np.array_equal(box.view(0, "recv")[:ROW], box.view(3, "x")[:ROW])


@pytest.mark.parametrize("channel", [-1, 4])
def test_a_channel_must_exist(channel: int) -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    assert failure(box, [box.put(1, 0, channel=channel)]) == f"uses channel {channel}, there are 4"
    assert failure(box, [(code.PUT_WAIT, channel)]) == f"uses channel {channel}, there are 4"


def test_a_request_has_room_for_so_many_rows() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=1)
    box.run({(1, 0, 0): [box.put_rows(0, list(range(MOST_SEGMENTS)))]})
    sentence = failure(box, [box.put_rows(0, list(range(MOST_SEGMENTS + 1)))])
    assert sentence == "puts 17 rows by one request, which has room for 16"


def test_more_warps_than_an_sm_has_room_for_are_refused() -> None:
    box = Sandbox()
    with pytest.raises(UsageError, match="test asks for 65 warps on an SM; .* has room for 64"):
        box.run({(0, 0, 64): [(code.PAUSE, 1)]})


def test_the_engine_runs_again_after_a_mistake() -> None:
    box = Sandbox()
    failure(box, [(code.DIVIDE, 1, 0)])
    assert box.run({(1, 2, 1): [(code.PAUSE, 5)]}).end_ps.tolist() == [[0, 5000]]


def test_a_stack_that_is_used_up_is_seen() -> None:
    stacks = Stacks(3)
    assert stacks.overflowed() == []
    ctypes.c_int64.from_address(stacks.base + STACK_BYTES).value = 1
    assert stacks.overflowed() == [1]


def test_a_deadlock_names_rank_warp_line_flag_and_values() -> None:
    box = Sandbox()
    box.view(1, "flags", np.int64)[3] = 2
    programs = {(1, 2, 1): [(code.PAUSE, 5), (code.WAIT_GE, box.flag(3), 5)]}
    with pytest.raises(TimeoutFailure) as raised:
        box.run(programs)
    where = f"{Path(code.__file__).name}:{line_of('isa.wait_ge', code.run_step)}"
    head, line = str(raised.value).split("\n")
    assert head == "deadlock at 0.3 us of virtual time; 1 warps are blocked:"
    assert line.startswith("  rank 1 sm 2 warp 1: ")
    assert line.endswith(f"{where} waits for flags[3] >= 5, sees 2")


def test_a_deadlock_counts_warps_that_wait_alike_and_names_each_kind() -> None:
    box = Sandbox()
    values = np.array([1, 1], np.int64)
    programs: dict[tuple[int, int, int], list[Step]] = {
        (0, 0, warp): [(code.WAIT_GE, box.flag(0), 1)] for warp in range(4)
    }
    programs[0, 1, 0] = [(code.WAIT_ANY, box.flag(4), 8, int(values.ctypes.data), 2, box.result(0))]
    programs[1, 0, 2] = [(code.BLOCK_SYNC,)]
    programs[1, 0, 3] = [(code.WAIT_GE, box.flag(1), 1)]
    with pytest.raises(TimeoutFailure) as raised:
        box.run(programs)
    text = str(raised.value)
    assert "7 warps are blocked" in text
    assert "rank 0 sm 0 warp 0 and 3 more like it: " in text
    assert "flags[0] >= 1, sees 0" in text
    assert "waits for any of 2 words from flags[4]" in text
    sync = line_of("isa.block_sync", code.run_step)
    assert re.search(rf"rank 1 sm 0 warp 2: .*:{sync} waits for the other warps", text)


def test_waits_in_swapped_order_are_a_deadlock_by_flag_and_line() -> None:
    box = Sandbox()
    first, second = box.flag(0), box.flag(1)
    launch = Launch(
        name="test",
        entry=entry("two_waits"),
        num_blocks=1,
        num_warps=1,
        params=np.array([[0, first], [1, first]], np.int64),
        row_bytes=(ROW, FULL),
    )
    with pytest.raises(TimeoutFailure) as raised:
        box.engine.run([launch], box.options())
    text = str(raised.value)
    for rank, flag in ((0, "first"), (1, "second")):
        line = line_of(f"isa.wait_ge({flag}, 1)", code.two_waits)
        place = f":{line} waits for flags\\[{rank}\\] >= 1, sees 0"
        assert re.search(f"rank {rank} sm 0 warp 0: .*{place}", text)
    # With either flag set, both ranks end.
    box.view(1, "flags", np.int64)[1] = 1
    box.engine.run([launch], box.options())
    assert second == first + 8


def test_a_kernel_that_never_ends_meets_the_limit_of_virtual_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "TIME_LIMIT_PS", 10**9)
    box = Sandbox()
    with pytest.raises(TimeoutFailure, match="no end within the limit of virtual time"):
        box.run({(0, 0, 0): [(code.SPIN, box.flag(0), 1)]})


def test_a_kernel_that_never_ends_meets_the_limit_of_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "EVENT_LIMIT", 10**5)
    monkeypatch.setattr(engine, "SLICE_EVENTS", 10**4)
    box = Sandbox()
    looks: list[int] = []
    launch = box.launch({(0, 0, 0): [(code.SPIN, box.flag(0), 1)]})
    with pytest.raises(TimeoutFailure, match="no end within the limit"):
        box.engine.run([launch], box.options(), lambda events, _: looks.append(events))
    assert 10 <= len(looks) <= 12
    assert looks == sorted(looks)
