"""Named barriers and waits for many words on real threads."""

import re

import kernels_for_tests as code
import numpy as np
import pytest
from cpu_world import CpuWorld, Programs, Step
from test_cpu_machine import line_of

from comms.failed import ProgramFailed
from kernels.isa import NUM_GROUPS

SHORT_S = 0.3


def group(index: int, num_warps: int) -> Step:
    return (code.GROUP_SYNC, index, num_warps)


def test_a_group_orders_its_warps_and_no_others() -> None:
    num_rounds, sizes = 30, {1: 3, 2: 2}
    words = np.zeros(8, np.int64)
    with CpuWorld(1) as world:
        programs: dict[tuple[int, int, int], list[Step]] = {}
        warp = 0
        for index, size in sizes.items():
            for number in range(size):
                own, after = (
                    int(words[warp - number + place % size :].ctypes.data)
                    for place in (number, number + 1)
                )
                steps = programs.setdefault((0, 0, warp), [])
                # Groups do not take as many rounds: one that waited for the other would hang.
                for turn in range(num_rounds // index):
                    if (turn + warp) % 3 == 0:
                        steps.append((code.PAUSE, 20_000))
                    steps += [
                        (code.POKE, own, 100 * turn + warp),
                        group(index, size),
                        (code.PEEK, after, world.result(num_rounds * warp + turn)),
                        group(index, size),
                    ]
                warp += 1
        world.times(programs)
        for warp, (index, next_warp) in enumerate([(1, 1), (1, 2), (1, 0), (2, 4), (2, 3)]):
            found = world.results[num_rounds * warp :][: num_rounds // index]
            assert found.tolist() == [100 * turn + next_warp for turn in range(num_rounds // index)]


def test_a_release_hands_over_the_rows_of_the_group() -> None:
    with CpuWorld(2) as world:
        programs: Programs = {
            (0, 0, 0): [
                (code.COPY_ROW, 1, world.at("recv"), world.addr(0, "x"), 4096),
                group(4, 2),
            ],
            (0, 0, 1): [group(4, 2), (code.STORE_RELEASE, 1, world.flag(0), 1)],
            (1, 0, 0): [
                (code.WAIT_GE, world.flag(0), 1),
                (code.PEEK, world.addr(1, "recv", 4088), world.result(0)),
            ],
        }
        world.times(programs)
        assert world.results[0] == world.view(0, "x", np.int64)[511]


def test_a_group_that_never_fills_is_reported_by_its_line() -> None:
    with CpuWorld(1, limits_s={0: SHORT_S}) as world:
        error = world.outcomes(world.prepare({(0, 0, 1): [group(7, 2)]}))[0]
        assert isinstance(error, ProgramFailed)
        assert error.is_timeout
        line = line_of("isa.group_sync")
        assert dict(error.waits)["rank 0 sm 0 warp 1"] == (
            f"{line} waits for the other warps of its group"
        )


@pytest.mark.parametrize("index", [-1, 0, NUM_GROUPS, 1 << 40])
def test_a_group_must_exist(index: int) -> None:
    with CpuWorld(1) as world:
        error = world.outcomes(world.prepare({(0, 0, 1): [group(index, 1)]}))[0]
        assert re.search(
            rf"rank 0 sm 0 warp 1 synchronises with group {index}: groups go from 1 to 15",
            str(error),
        )


def test_a_warp_stays_in_one_group_for_a_launch() -> None:
    with CpuWorld(1) as world:
        program = world.prepare({(0, 0, 0): [group(2, 1), group(2, 1), group(3, 1)]})
        assert "synchronises with group 3" in str(world.outcomes(program)[0])
    with CpuWorld(1) as world:
        world.times({(0, 0, 0): [group(2, 1)]}, {(0, 0, 0): [group(3, 1)]})


def test_the_least_of_words_is_found_with_their_stride() -> None:
    with CpuWorld(1) as world:
        words = world.view(0, "flags", np.int64)
        words[:70] = np.arange(70)[::-1] + 5
        words[1::2] = -9
        world.times({(0, 0, 0): [(code.MIN_WORDS, world.flag(0), 16, 35, world.result(0))]})
        assert world.results[0] == 6


def test_a_wait_for_all_words_ends_with_the_last() -> None:
    with CpuWorld(2) as world:
        count = 40
        stores: list[Step] = [
            (code.STORE_RELEASE, 0, world.flag(3 * place), 2)
            for place in np.random.default_rng(5).permutation(count)
        ]
        last = int(stores[-1][2])
        programs: Programs = {
            (1, 0, 0): [*stores[:-1], (code.PAUSE, 5_000_000), stores[-1]],
            (0, 0, 0): [
                (code.WAIT_ALL, world.flag(0), 24, count, 2),
                (code.LOAD, last, world.result(0)),
            ],
        }
        world.times(programs)
        assert world.results[0] == 2


def test_a_wait_for_all_words_names_the_one_that_is_missing() -> None:
    with CpuWorld(1, limits_s={0: SHORT_S}) as world:
        world.view(0, "flags", np.int64)[:3] = 5, 4, 5
        error = world.outcomes(
            world.prepare({(0, 0, 0): [(code.WAIT_ALL, world.flag(0), 8, 3, 5)]})
        )
        failed = error[0]
        assert isinstance(failed, ProgramFailed)
        line = line_of("isa.wait_all")
        assert dict(failed.waits)["rank 0 sm 0 warp 0"] == (
            f"{line} waits for flags[1] >= 5, sees 4"
        )


def test_a_scan_of_words_adds_their_low_halves() -> None:
    with CpuWorld(1) as world:
        world.view(0, "flags", np.int64)[:33] = 7 << 32 | 2
        world.times({(0, 0, 0): [(code.SCAN_WORDS, world.flag(0), 33, world.addr(0, "recv"))]})
        assert world.view(0, "recv", np.int32)[:34].tolist() == list(range(0, 67, 2))
        error = world.outcomes(
            world.prepare({(0, 0, 0): [(code.SCAN_WORDS, world.flag(510), 3, 0)]})
        )
        assert "of region flags" in str(error[0])
