"""The cpu machine in real memory: who sees what when, and one sentence for every bad end."""

import inspect
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator

import kernels_for_tests as code
import numpy as np
import pytest
from cpu_world import REGIONS, WAIT_S, CpuWorld, Programs, Step, Times, succeeded
from numba import njit, types

from comms.cpu.program import MEET, Launch
from comms.errors import EpbenchError, TimeoutFailure
from comms.failed import ProgramFailed
from comms.fiber import install_switch
from comms.memory import POISON
from kernels.isa import MOST_SEGMENTS, cpu

ROW = 448
#: A limit that a test waits for.
SHORT_S = 0.2


def line_of(text: str) -> str:
    """Return file and line of the only place of `run_step` that holds `text`."""
    lines, first = inspect.getsourcelines(code.run_step)
    found = [first + index for index, line in enumerate(lines) if text in line]
    assert len(found) == 1, found
    return f"{code.__file__}:{found[0]}"


def failures(
    world: CpuWorld, *launches: Programs | Launch, ranks: tuple[int, ...] | None = None
) -> dict[int, ProgramFailed]:
    """Run launches that fail on every rank."""
    found = world.outcomes(world.prepare(*launches), ranks=ranks)
    errors = {rank: error for rank, error in found.items() if isinstance(error, ProgramFailed)}
    assert errors.keys() == found.keys()
    return errors


def works(world: CpuWorld) -> bool:
    """Return whether ranks meet, hand rows over and end."""
    world.abort[0] = 0
    for rank in range(world.num_ranks):
        world.view(rank, "flags")[:] = 0
        world.view(rank, "recv")[:] = POISON
    programs = {}
    for rank in range(world.num_ranks):
        other = (rank + 1) % world.num_ranks
        programs[rank, 0, 0] = [
            (code.COPY_ROW, other, world.at("recv"), world.addr(rank, "x"), ROW),
            (code.STORE_RELEASE, other, world.flag(0), 1),
            (code.WAIT_GE, world.flag(0), 1),
        ]
    world.times(MEET, programs)
    return all(
        np.array_equal(world.view((rank + 1) % world.num_ranks, "recv")[:ROW], row)
        for rank in range(world.num_ranks)
        for row in [world.view(rank, "x")[:ROW]]
    )


@pytest.fixture
def one_core() -> Iterator[None]:
    """Let what is started here share a core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


class Handover:
    """Every warp of 2 ranks x 2 SMs x 2 warps sends rows or logs those that it is sent.

    A slot is written again once its row is logged, so that both directions must be ordered.
    """

    NUM_ROWS, NUM_SLOTS = 300, 2

    def __init__(self, copy: int) -> None:
        self._copy = copy
        self._is_far = copy == code.PUT_ROW
        self.world = CpuWorld(2, num_nodes=2 if self._is_far else 1, num_sms=2)
        self._rng = np.random.default_rng(2)
        self.expected = np.full((2, REGIONS["log"]), POISON, np.uint8)

    def programs(self) -> Programs:
        """Return what the warps run, and note what they shall log."""
        programs: dict[tuple[int, int, int], list[Step]] = {}
        for lane in range(4):
            sm, warp = divmod(lane, 2)
            sends: list[Step] = []
            logs: list[Step] = []
            programs[sm, sm, warp], programs[1 - sm, sm, warp] = sends, logs
            for index in range(self.NUM_ROWS):
                self._add_row(lane, index, sends, logs)
        return programs

    def _add_row(self, lane: int, index: int, sends: list[Step], logs: list[Step]) -> None:
        world, source = self.world, lane // 2
        ready, logged = world.flag(lane), world.flag(8 + lane)
        slot = (lane * self.NUM_SLOTS + index % self.NUM_SLOTS) * 1024 + 16 * (index % 5)
        start = 16 * int(self._rng.integers(REGIONS["x"] // 16 - ROW))
        num_bytes = 16 * int(self._rng.integers(1, ROW // 16 + 1))
        entry = (lane % 2 * self.NUM_ROWS + index) * ROW
        row = (1 - source, world.at("recv", slot), world.addr(source, "x", start), num_bytes)
        sends.append((code.WAIT_GE, logged, index + 1 - self.NUM_SLOTS))
        sends.append((self._copy, *row, lane))
        sends.append(self._signal(1 - source, ready, index + 1))
        logs.append((code.WAIT_GE, ready, index + 1))
        recv = world.addr(1 - source, "recv", slot)
        logs.append((code.COPY_ROW, 1 - source, world.at("log", entry), recv, num_bytes))
        logs.append(self._signal(source, logged, index + 1))
        self.expected[1 - source, entry : entry + num_bytes] = world.view(source, "x")[
            start : start + num_bytes
        ]

    def _signal(self, rank: int, flag: int, value: int) -> Step:
        if self._is_far:
            return (code.PUT_SIGNAL, rank, flag, 1, 0)
        return (code.STORE_RELEASE, rank, flag, value)


@pytest.mark.parametrize("copy", [code.COPY_ROW, code.COPY_ROW_BULK, code.PUT_ROW])
def test_a_release_hands_over_the_rows_before_it(copy: int) -> None:
    handover = Handover(copy)
    with handover.world as world:
        world.times(handover.programs())
        for rank in range(2):
            assert np.array_equal(world.view(rank, "log"), handover.expected[rank])


@pytest.mark.parametrize(
    ("instruction", "num_args", "is_release"),
    [
        (cpu.store_release, 3, True),
        (cpu.put_signal, 4, True),
        (cpu.fence_release, 0, True),
        (cpu.store, 3, False),
        (cpu.add, 3, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_release_waits_for_stores_that_pass_the_cache_by(
    instruction: Callable[..., None], num_args: int, is_release: bool
) -> None:
    # A processor may keep them in order by chance, so what is compiled is looked at.
    install_switch()
    signature = types.void(*[types.int64] * num_args)

    names = ", ".join(f"a{index}" for index in range(num_args))
    namespace = {"instruction": instruction}
    exec(f"def run({names}):\n    instruction({names})\n", namespace)
    (assembly,) = njit(signature)(namespace["run"]).inspect_asm().values()
    assert ("sfence" in assembly) == is_release


def test_a_fence_hands_over_the_rows_before_relaxed_adds() -> None:
    num_rounds, senders = (
        50,
        [(rank, sm, warp) for rank in (0, 2) for sm in (0, 1) for warp in (0, 1)],
    )
    with CpuWorld(3, num_sms=2) as world:
        programs: dict[tuple[int, int, int], list[Step]] = {sender: [] for sender in senders}
        logs = programs.setdefault((1, 0, 0), [])
        expected = np.full(REGIONS["log"], POISON, np.uint8)
        for turn in range(num_rounds):
            logs.append((code.WAIT_GE, world.flag(0), (turn + 1) * len(senders)))
            for index, sender in enumerate(senders):
                start = 16 * (turn * 8 + index)
                source = world.addr(sender[0], "x", start)
                programs[sender] += [
                    (code.WAIT_GE, world.flag(1), turn),
                    (code.COPY_ROW, 1, world.at("recv", index * ROW), source, ROW),
                    (code.FENCE,),
                    (code.ADD, 1, world.flag(0), 1),
                ]
                entry = (turn * len(senders) + index) * ROW
                row = world.addr(1, "recv", index * ROW)
                logs.append((code.COPY_ROW, 1, world.at("log", entry), row, ROW))
                expected[entry : entry + ROW] = world.view(sender[0], "x")[start : start + ROW]
            logs.append((code.FENCE,))
            logs += [(code.STORE, rank, world.flag(1), turn + 1) for rank in (0, 2)]
        world.times(programs)
        assert np.array_equal(world.view(1, "log"), expected)


def test_fetch_add_gives_each_value_once() -> None:
    warps = [(rank, sm, warp) for rank in range(3) for sm in range(2) for warp in range(2)]
    num_each = 400
    with CpuWorld(3, num_sms=2) as world:
        programs = {
            warp: [
                (code.FETCH_ADD, 1, world.flag(5), 1, world.result(index * num_each + turn))
                for turn in range(num_each)
            ]
            for index, warp in enumerate(warps)
        }
        world.times(programs)
        num_all = len(warps) * num_each
        values = world.results[:num_all]
        assert np.array_equal(np.sort(values), np.arange(num_all))
        assert (np.diff(values.reshape(len(warps), num_each)) > 0).all()
        assert world.windows.word(1, world.flag(5)) == num_all


@pytest.mark.parametrize("index", range(4))
def test_wait_any_returns_the_index_of_the_word_that_has_its_value(index: int) -> None:
    wanted = np.array([5, 6, 7, 8], np.int64)
    with CpuWorld() as world:
        # Words of a stride of 24 bytes; each has the value before the one that is waited for.
        words = [world.flag(3 + 3 * number) for number in range(4)]
        world.view(0, "flags", np.int64)[[3, 6, 9, 12]] = wanted - 1
        wait = (code.WAIT_ANY, words[0], 24, int(wanted.ctypes.data), 4, world.result(0))
        programs = {
            (0, 0, 0): [wait, (code.PEEK, world.addr(0, "recv"), world.result(1))],
            (1, 0, 0): [
                (code.PAUSE, 2_000_000),
                (code.COPY_ROW, 0, world.at("recv"), world.addr(1, "x"), 16),
                (code.STORE_RELEASE, 0, words[index], int(wanted[index])),
            ],
        }
        world.times(programs)
        assert list(world.results[:2]) == [index, world.view(1, "x", np.int64)[0]]


@pytest.mark.parametrize(("first", "found"), [(0, 0), (1, 2), (2, 2), (3, 0)])
def test_wait_any_prefers_the_next_word_from_one_on(first: int, found: int) -> None:
    wanted = np.array([5, 5, 5], np.int64)
    with CpuWorld(1) as world:
        world.view(0, "flags", np.int64)[:3] = (5, 4, 6)
        address, result = int(wanted.ctypes.data), world.result(0)
        world.times({(0, 0, 0): [(code.WAIT_ANY, world.flag(0), 8, address, 3, result, first)]})
        assert world.results[0] == found


def test_block_sync_orders_the_warps_of_a_block() -> None:
    num_sms, num_warps, num_rounds = 2, 4, 30
    words = np.zeros((num_sms, num_warps), np.int64)
    with CpuWorld(1, num_sms=num_sms) as world:
        programs: dict[tuple[int, int, int], list[Step]] = {}
        for sm, warp in np.ndindex(num_sms, num_warps):
            steps = programs.setdefault((0, sm, warp), [])
            own, next_warp = (
                int(words[sm, number % num_warps :].ctypes.data) for number in (warp, warp + 1)
            )
            for turn in range(num_rounds):
                place = (sm * num_warps + warp) * num_rounds + turn
                if (turn + warp) % 3 == 0:
                    steps.append((code.PAUSE, 20_000))
                steps.append((code.POKE, own, 1000 * turn + 10 * sm + warp))
                steps.append((code.BLOCK_SYNC,))
                steps.append((code.PEEK, next_warp, world.result(place)))
                steps.append((code.BLOCK_SYNC,))
        world.times(programs)
        found = world.results[: num_sms * num_warps * num_rounds]
        sms, warps, turns = np.ogrid[:num_sms, :num_warps, :num_rounds]
        expected = 1000 * turns + 10 * sms + (warps + 1) % num_warps
        assert np.array_equal(found, expected.ravel())


def test_a_warp_that_has_ended_is_not_waited_for_by_its_block() -> None:
    with CpuWorld(1) as world:
        sync: Step = (code.BLOCK_SYNC,)
        counted: Step = (code.ADD, 0, world.flag(0), 1)
        programs: Programs = {
            (0, 0, 0): [sync, counted, sync, counted],
            (0, 0, 1): [],
            (0, 0, 2): [(code.PAUSE, 1_000_000)],
            (0, 0, 3): [sync, counted],
        }
        world.times(programs)
        assert world.windows.word(0, world.flag(0)) == 3


def test_a_spin_ends_when_another_rank_stores() -> None:
    with CpuWorld() as world:
        peek: Step = (code.PEEK, world.addr(0, "recv", ROW - 8), world.result(0))
        programs: Programs = {
            # Two warps that spin let each other and the third run.
            (0, 0, 0): [(code.SPIN, world.flag(0), 1)],
            (0, 0, 1): [(code.SPIN, world.flag(0), 3), peek],
            (0, 0, 2): [(code.STORE_RELEASE, 1, world.flag(1), 1)],
            (1, 0, 0): [
                (code.WAIT_GE, world.flag(1), 1),
                (code.STORE, 0, world.flag(0), 1),
                (code.PAUSE, 1_000_000),
                (code.COPY_ROW, 0, world.at("recv"), world.addr(1, "x"), ROW),
                (code.STORE_RELEASE, 0, world.flag(0), 3),
            ],
        }
        world.times(programs)
        assert world.results[0] == world.view(1, "x", np.int64)[ROW // 8 - 1]


def test_a_launch_sees_what_the_one_before_wrote_on_another_sm() -> None:
    num_launches, num_bytes = 40, 2048
    with CpuWorld(2, num_sms=3) as world:
        launches = []
        for index in range(num_launches):
            sm = index % 3
            programs: dict[tuple[int, int, int], list[Step]] = {}
            for rank in range(2):
                before = world.addr(rank, "recv", (index - 1) * num_bytes)
                source = world.addr(rank, "x") if index == 0 else before
                place = world.at("recv", index * num_bytes)
                programs[rank, sm, 0] = [(code.COPY_ROW, rank, place, source, num_bytes)]
            launches.append(programs)
        prepared = world.prepare(*launches)
        for _ in range(10):
            for rank in range(2):
                world.view(rank, "recv")[:] = POISON
            for rank, times in succeeded(world.outcomes(prepared)).items():
                assert (times[:, 1] >= times[:, 0]).all()
                assert (times[1:, 0] >= times[:-1, 1]).all()
                rows = world.view(rank, "recv")[: num_launches * num_bytes].reshape(-1, num_bytes)
                assert (rows == world.view(rank, "x")[:num_bytes]).all()


def test_an_sm_without_a_block_passes_a_launch() -> None:
    with CpuWorld(1, num_sms=4) as world:
        count: Step = (code.ADD, 0, world.flag(0), 1)
        launches = [{(0, sm, 0): [count] for sm in range(num)} for num in (1, 4, 2, 1, 3)]
        times = world.times(*launches)[0]
        assert world.windows.word(0, world.flag(0)) == 11
        assert times.shape == (5, 2)


def test_launches_may_have_different_numbers_of_warps() -> None:
    with CpuWorld(1, num_sms=2) as world:
        sync: Step = (code.BLOCK_SYNC,)
        count: Step = (code.ADD, 0, world.flag(0), 1)
        launches = [
            {(0, sm, warp): [count, sync] for sm in range(2) for warp in range(num)}
            for num in (1, 8, 3, 1)
        ]
        world.times(*launches)
        assert world.windows.word(0, world.flag(0)) == 26


def test_a_program_runs_again_and_again() -> None:
    num_runs = 50
    with CpuWorld(3, num_sms=2) as world:
        programs: dict[tuple[int, int, int], list[Step]] = {}
        for rank, sm, warp in np.ndindex(3, 2, 2):
            flag, other = world.flag(2 * sm + warp), (rank + 1) % 3
            programs[rank, sm, warp] = [
                (code.STORE_RELEASE, other, flag, 1),
                (code.WAIT_GE, flag, 1),
                # No rank begins the next run before all have ended this one.
                (code.STORE, rank, flag, 0),
                (code.ADD, 0, world.flag(9), 1),
            ]
        prepared = world.prepare(MEET, programs)
        succeeded(world.outcomes(prepared, num_runs=num_runs))
        assert world.windows.word(0, world.flag(9)) == 12 * num_runs


def test_ranks_that_meet_wait_for_the_last() -> None:
    with CpuWorld(3) as world:
        programs = world.prepare(MEET, {(0, 0, 0): [], (1, 0, 0): [], (2, 0, 0): []})
        times = succeeded(world.outcomes(programs, before={1: lambda: time.sleep(0.3)}))
        began = {rank: stamps[0, 0] for rank, stamps in times.items()}
        assert began[1] == max(began.values())
        for stamps in times.values():
            assert stamps[0, 1] >= began[1]
            assert stamps[1, 0] >= began[1]


def test_more_sms_than_cores_get_their_turns(one_core: None) -> None:
    num_ranks, num_sms, num_turns = 2, 8, 20
    with CpuWorld(num_ranks, num_sms=num_sms) as world:
        programs: dict[tuple[int, int, int], list[Step]] = {}
        # A ring through all SMs of all ranks: each turn needs every thread.
        for place in range(num_ranks * num_sms):
            rank, sm = place % num_ranks, place // num_ranks
            following = (place + 1) % (num_ranks * num_sms)
            steps = programs.setdefault((rank, sm, 0), [])
            target = (following % num_ranks, world.flag(following // num_ranks))
            for turn in range(num_turns):
                steps.append((code.WAIT_GE, world.flag(sm), turn + (place > 0)))
                steps.append((code.STORE_RELEASE, *target, turn + 1))
        world.times(MEET, programs)
        for rank in range(num_ranks):
            assert (world.view(rank, "flags", np.int64)[:num_sms] == num_turns).all()


@pytest.mark.parametrize("nanoseconds", [0, 1, 3_000_000, 50_000_000])
def test_a_pause_takes_at_least_its_time(nanoseconds: int) -> None:
    with CpuWorld(1, num_sms=2) as world:
        programs = {
            (0, 0, 0): [(code.PAUSE, nanoseconds), (code.PAUSE, nanoseconds)],
            (0, 0, 1): [(code.PAUSE, nanoseconds)],
            (0, 1, 0): [],
        }
        before = time.monotonic_ns()
        times: Times = world.times(programs)[0]
        assert times[0, 1] - times[0, 0] >= 2 * nanoseconds
        assert before <= times[0, 0] <= times[0, 1] <= time.monotonic_ns()


def test_a_wait_that_is_never_satisfied_names_rank_sm_warp_line_flag_and_values() -> None:
    with CpuWorld(3, num_sms=2, limits_s={1: SHORT_S}) as world:
        world.view(1, "flags", np.int64)[3] = 2
        waits: Step = (code.WAIT_GE, world.flag(1), 7)
        programs = {
            (0, 0, 0): [(code.ADD, 0, world.flag(0), 1), waits],
            (1, 1, 1): [(code.PAUSE, 5), (code.WAIT_GE, world.flag(3), 5)],
            (2, 0, 1): [],
        }
        found = world.outcomes(
            world.prepare(programs), before={1: lambda: world.until(world.flag(0), 1)}
        )
        where = line_of("isa.wait_ge")
        error, other = found[1], found[0]
        assert isinstance(error, ProgramFailed)
        assert str(error) == "no end: a wait reached its limit of 0.2 s"
        assert error.waits == [("rank 1 sm 1 warp 1", f"{where} waits for flags[3] >= 5, sees 2")]
        assert (error.is_timeout, error.is_cause) == (True, True)
        assert error.exit_code == TimeoutFailure.exit_code
        assert isinstance(other, ProgramFailed)
        assert str(other) == "another rank's program failed"
        assert other.waits == [("rank 0 sm 0 warp 0", f"{where} waits for flags[1] >= 7, sees 0")]
        assert (other.is_timeout, other.is_cause) == (False, False)
        assert other.exit_code == EpbenchError.exit_code
        # This rank waits for nobody: it has ended before, or comes too late to begin.
        assert not isinstance(found[2], ProgramFailed) or not found[2].is_cause
        assert world.abort[0] == 1 + 1


def test_ranks_that_wait_for_each_other_all_end() -> None:
    with CpuWorld(2, num_sms=2, limits_s={0: SHORT_S, 1: SHORT_S}) as world:
        programs = {
            (rank, sm, warp): [
                (code.WAIT_GE, world.flag(2 * sm + warp), 1),
                (code.STORE_RELEASE, 1 - rank, world.flag(2 * sm + warp), 1),
            ]
            for rank, sm, warp in np.ndindex(2, 2, 2)
        }
        errors = failures(world, programs)
        for rank, error in errors.items():
            assert error.is_timeout == error.is_cause
            # What has not begun when the limit is reached waits for no flag.
            turn = f"{code.__file__} waits for its turn"
            flags = {
                f"rank {rank} sm {sm} warp {warp}": f"{line_of('isa.wait_ge')} waits for "
                f"flags[{2 * sm + warp}] >= 1, sees 0"
                for sm, warp in np.ndindex(2, 2)
            }
            assert all(what in (flags[where], turn) for where, what in error.waits)
        assert any(error.is_timeout and len(error.waits) >= 2 for error in errors.values())


def test_every_kind_of_wait_is_named() -> None:
    values = np.array([1, 1, 1], np.int64)
    with CpuWorld(1, num_sms=2) as world:
        begun: Step = (code.ADD, 0, world.flag(9), 1)
        programs: dict[tuple[int, int, int], list[Step]] = {
            (0, 0, 0): [(code.WAIT_ANY, world.flag(4), 8, int(values.ctypes.data), 3, 0)],
            (0, 0, 1): [(code.WAIT_GE, world.flag(1), 1)],
            (0, 0, 2): [begun],
            (0, 1, 0): [(code.BLOCK_SYNC,)],
            (0, 1, 1): [(code.WAIT_GE, world.flag(2), -1), (code.WAIT_GE, world.flag(2), 1)],
            (0, 1, 2): [begun, (code.SPIN, world.flag(3), 1)],
        }

        def end() -> None:
            world.until(world.flag(9), 2)
            world.abort[0] = 1

        error = world.outcomes(world.prepare(programs), meanwhile=end)[0]
        assert isinstance(error, ProgramFailed)
        wait, sync = line_of("isa.wait_ge"), line_of("isa.block_sync")
        assert dict(error.waits) == {
            "rank 0 sm 0 warp 0": f"{line_of('isa.wait_any')} waits for any of 3 words from "
            "flags[4]",
            "rank 0 sm 0 warp 1": f"{wait} waits for flags[1] >= 1, sees 0",
            "rank 0 sm 1 warp 0": f"{sync} waits for the other warps of its block",
            "rank 0 sm 1 warp 1": f"{wait} waits for flags[2] >= 1, sees 0",
            "rank 0 sm 1 warp 2": f"{code.__file__} loads flags[3] again and again",
        }


def test_a_spin_on_a_word_that_never_changes_meets_the_limit() -> None:
    with CpuWorld(2, limits_s={1: SHORT_S}) as world:
        programs = {
            (0, 0, 0): [(code.WAIT_GE, world.flag(0), 1)],
            (1, 0, 0): [(code.SPIN, world.flag(6), 1)],
        }
        errors = failures(world, programs)
        assert str(errors[1]) == "no end: a wait reached its limit of 0.2 s"
        assert errors[1].waits == [
            ("rank 1 sm 0 warp 0", f"{code.__file__} loads flags[6] again and again")
        ]
        assert [errors[rank].is_timeout for rank in range(2)] == [False, True]
        assert [errors[rank].is_cause for rank in range(2)] == [False, True]


def test_a_rank_that_does_not_come_to_the_start_is_told_of() -> None:
    with CpuWorld(3, num_sms=2, limits_s={0: SHORT_S}) as world:
        found = world.outcomes(world.prepare(MEET), ranks=(0, 2))
        first, last = found[0], found[2]
        assert isinstance(first, ProgramFailed)
        assert isinstance(last, ProgramFailed)
        assert str(first) == "a rank did not come to the start within 0.2 s"
        assert (first.is_timeout, first.is_cause, first.waits) == (True, True, [])
        assert (last.is_timeout, last.is_cause, last.waits) == (False, False, [])


def test_ranks_meet_again_after_one_did_not_come() -> None:
    with CpuWorld(3, num_sms=2) as world:

        def end() -> None:
            world.until(world.at("rendezvous"), 2)
            world.abort[0] = 1

        count = {(rank, 0, 0): [(code.ADD, 0, world.flag(0), 1)] for rank in range(3)}
        prepared = world.prepare(MEET, count)
        found = world.outcomes(prepared, ranks=(0, 2), meanwhile=end)
        # Who comes too late does not begin.
        found |= world.outcomes(prepared, ranks=(1,))
        for outcome in found.values():
            assert isinstance(outcome, ProgramFailed)
            assert not outcome.is_cause
        assert world.windows.word(0, world.flag(0)) == 0
        assert works(world)
        assert works(world)


def test_ranks_meet_again_after_a_failure_where_one_was_a_run_ahead() -> None:
    with CpuWorld(2) as world:
        # Rank 1 ends its first run and waits for rank 0's second.
        prepared = world.prepare(MEET, {(0, 0, 0): [(code.WAIT_GE, world.flag(0), 1)]})

        def end() -> None:
            world.until(world.at("rendezvous"), 3)
            world.abort[0] = 1

        found = world.outcomes(prepared, num_runs=2, meanwhile=end)
        assert all(isinstance(outcome, ProgramFailed) for outcome in found.values())
        for _ in range(3):
            assert works(world)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([(code.STORE, 0, 1 << 40, 1)], "accesses rank 0 at byte .* of region rendezvous of 8 "),
        ([(code.STORE, 0, -8, 1)], "accesses rank 0 at offset -8 of its window"),
        ([(code.FETCH_ADD, 0, -8, 1, 0)], "accesses rank 0 at offset -8 of its window"),
        ([(code.WAIT_GE, -8, 1)], "accesses rank 1 at offset -8 of its window"),
        ([(code.WAIT_ANY, -8, 8, 0, 1, 0)], "accesses rank 1 at offset -8 of its window"),
        ([(code.LOAD, 1 << 40, 0)], "accesses rank 1 at byte .* of region rendezvous of 8 bytes"),
        ([(code.LOAD_ACQUIRE, -8, 0)], "accesses rank 1 at offset -8 of its window"),
        ([(code.COPY_ROW, 2, 0, 0, 16)], "addresses rank 2, which does not exist"),
        ([(code.COPY_ROW, 0, 0, 0, -16)], "accesses rank 0 at offset -16 of its window"),
        ([(code.ADD, -1, 0, 1)], "addresses rank -1, which does not exist"),
        ([(code.STORE_RELEASE, 1 << 32, 0, 1)], "addresses rank 4294967296, which does not"),
        ([(code.PUT_ROW, -1, 0, 0, 16, 0)], "addresses rank -1, which does not exist"),
        ([(code.DIVIDE, 1, 0)], r"raised an exception \(division by zero or an index out of"),
    ],
)
def test_a_mistake_names_its_warp_and_its_place(steps: list[Step], sentence: str) -> None:
    with CpuWorld(2, num_sms=2) as world:
        waits: Step = (code.WAIT_GE, world.flag(0), 1)
        begun: Step = (code.STORE_RELEASE, 1, world.flag(1), 1)
        last = {
            (0, 0, 0): [begun, waits],
            (1, 1, 0): [waits],
            (1, 1, 1): [(code.WAIT_GE, world.flag(1), 1), *steps],
        }
        errors = failures(world, {(0, 0, 0): []}, last)
        assert re.match(f"launch1: rank 1 sm 1 warp 1 {sentence}", str(errors[1]))
        assert (errors[1].is_timeout, errors[1].is_cause) == (False, True)
        assert (errors[0].is_timeout, errors[0].is_cause) == (False, False)
        assert "rank 0 sm 0 warp 0" in dict(errors[0].waits)
        assert errors[1].exit_code == EpbenchError.exit_code
        assert works(world)


def failure(world: CpuWorld, step: Step) -> str:
    """Return what is said of an instruction that fails on the last rank."""
    rank = world.num_ranks - 1
    errors = world.outcomes(world.prepare({(rank, 0, 0): [step]}))
    world.abort[0] = 0
    who = f"launch0: rank {rank} sm 0 warp 0 "
    assert str(errors[rank]).startswith(who)
    return str(errors[rank]).removeprefix(who)


def test_an_overrun_names_the_region_and_the_byte_it_reaches() -> None:
    with CpuWorld() as world:
        end, size = world.at("recv", REGIONS["recv"] - ROW), REGIONS["recv"]
        source = world.addr(1, "x")
        world.times({(1, 0, 0): [(code.COPY_ROW, 0, end, source, ROW)]})
        found = failure(world, (code.COPY_ROW, 0, end, source, 2 * ROW))
        assert found == f"accesses rank 0 at byte {size + ROW} of region recv of {size} bytes"
        found = failure(world, (code.STORE, 0, world.at("recv", size), 1))
        assert found == f"accesses rank 0 at byte {size} of region recv of {size} bytes"
        # A region that ends in the middle of a page.
        found = failure(world, (code.STORE, 0, world.at("rendezvous", 8), 1))
        assert found == "accesses rank 0 at byte 16 of region rendezvous of 8 bytes"
        after = world.windows.base(0) + world.at("recv", size)
        assert bytes(world.view(0, "recv")[-ROW:]) == bytes(world.view(1, "x")[:ROW])
        assert after == world.addr(0, "flags") - 4096


@pytest.mark.parametrize(
    "what", [code.STORE, code.STORE_RELEASE, code.ADD, code.FETCH_ADD, code.COPY_ROW]
)
def test_loads_and_stores_do_not_reach_another_node(what: int) -> None:
    with CpuWorld(4, num_nodes=2) as world:
        found = failure(world, (what, 1, world.flag(0), world.addr(3, "x"), ROW))
        assert found.startswith("addresses rank 1, to which this instruction has no path")
        assert (world.view(1, "flags") == 0).all()


def test_a_remote_row_of_another_node_cannot_be_reduced() -> None:
    with CpuWorld(4, num_nodes=2) as world:
        rank = np.zeros(1, np.int32)
        address = int(rank.ctypes.data)
        step = (code.REDUCE_ROWS, world.addr(3, "log"), 1, address, address, world.at("x"), ROW)
        assert failure(world, step).startswith("addresses rank 0, to which this instruction")


def test_puts_do_not_reach_the_own_node() -> None:
    with CpuWorld(4, num_nodes=2) as world:
        for rank in (2, 3):
            put = (code.PUT_ROW, rank, world.at("recv"), world.addr(3, "x"), ROW, 0)
            signal = (code.PUT_SIGNAL, rank, world.flag(0), 1, 0)
            for step in (put, signal):
                found = failure(world, step)
                assert found.startswith(f"addresses rank {rank}, to which this instruction has no")


def test_a_put_crosses_to_any_rank_of_another_node() -> None:
    with CpuWorld(4, num_nodes=2) as world:
        puts = [
            (code.PUT_ROW, rank, world.at("recv"), world.addr(3, "x"), ROW, 0) for rank in (0, 1)
        ]
        world.times({(3, 0, 0): [*puts, (code.PUT_WAIT, 0)]})
        for rank in range(2):
            assert np.array_equal(world.view(rank, "recv")[:ROW], world.view(3, "x")[:ROW])
        assert (world.view(2, "recv") == POISON).all()


def test_rows_of_one_request_arrive_in_their_order() -> None:
    with CpuWorld(4, num_nodes=2) as world:
        world.times({(3, 0, 0): [world.put_rows(0, [2, 0, 5], ROW)]})
        rows = world.view(3, "x")[: 6 * ROW].reshape(6, ROW)
        assert np.array_equal(world.view(0, "recv")[: 3 * ROW].reshape(3, ROW), rows[[2, 0, 5]])
        found = failure(world, world.put_rows(0, list(range(MOST_SEGMENTS + 1)), ROW))
        assert found == "puts 17 rows by one request, which has room for 16"


def test_a_wait_returns_the_word_that_ended_it() -> None:
    with CpuWorld() as world:
        waits = [(code.WAIT_GE, world.flag(0), 2, world.result(0))]
        adds = [(code.ADD, 1, world.flag(0), 5)]
        world.times({(0, 0, 0): adds, (1, 0, 0): waits})
        assert world.results[0] == 5


def test_launches_after_a_failure_do_not_run() -> None:
    with CpuWorld(2, num_sms=3) as world:
        mistake: Step = (code.DIVIDE, 1, 0)
        count = {(rank, sm, 0): [(code.ADD, 0, world.flag(0), 1)] for rank, sm in np.ndindex(2, 3)}
        wrong: Programs = {
            **count,
            (1, 1, 0): [mistake],
            (0, 2, 0): [(code.WAIT_GE, world.flag(7), 1)],
        }
        errors = failures(world, count, wrong, count, MEET, count)
        assert str(errors[1]).startswith("launch1: rank 1 sm 1 warp 0 raised")
        # Rank 1's three of the first launch; at most six of the first and four of the second.
        assert 3 <= world.windows.word(0, world.flag(0)) <= 10
        assert works(world)


def test_two_warps_that_fail_are_one_failure() -> None:
    with CpuWorld(1, num_sms=2) as world:
        wrong = {(0, sm, warp): [(code.DIVIDE, sm, 0)] for sm, warp in np.ndindex(2, 2)}
        for _ in range(20):
            (error,) = failures(world, wrong).values()
            assert re.match(r"launch0: rank 0 sm [01] warp 0 raised", str(error))
            assert works(world)


def test_an_abort_wakes_every_kind_of_wait_on_other_ranks() -> None:
    values = np.array([1, 1], np.int64)
    with CpuWorld(4, num_sms=2, limits_s={3: SHORT_S}) as world:
        begun: Step = (code.ADD, 0, world.flag(9), 1)
        programs: Programs = {
            (0, 0, 0): [begun, (code.WAIT_GE, world.flag(0), 1)],
            (0, 0, 1): [begun, (code.BLOCK_SYNC,)],
            (0, 1, 0): [begun, (code.WAIT_ANY, world.flag(1), 8, int(values.ctypes.data), 2, 0)],
            (1, 0, 0): [begun, (code.SPIN, world.flag(0), 1)],
            (1, 1, 0): [begun, (code.PAUSE, int(WAIT_S * 1e9) - 1)],
            (3, 0, 0): [(code.WAIT_GE, world.flag(0), 1)],
        }
        prepared = world.prepare(programs)
        prepared[2] = world.prepare(MEET)[2]

        def fails_last() -> None:
            world.until(world.flag(9), 5)
            world.until(world.at("rendezvous"), 1)

        found = world.outcomes(prepared, before={3: fails_last})
        for rank, places in {
            0: ["sm 0 warp 0", "sm 0 warp 1", "sm 1 warp 0"],
            1: ["sm 0 warp 0", "sm 1 warp 0"],
            2: [],
        }.items():
            error = found[rank]
            assert isinstance(error, ProgramFailed)
            # Ended by the abort and not by their own limit, which is far away.
            assert (error.is_cause, error.is_timeout) == (False, False)
            assert {f"rank {rank} {place}" for place in places} <= dict(error.waits).keys()


def test_a_failure_survives_being_sent_to_another_process() -> None:
    error = ProgramFailed("no end", [("rank 0", "waits")], is_timeout=True, is_cause=False)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ProgramFailed)
    assert (str(copy), copy.waits, copy.exit_code) == (str(error), error.waits, error.exit_code)
    assert (copy.is_timeout, copy.is_cause) == (True, False)
