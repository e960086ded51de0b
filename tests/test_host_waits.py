"""Words, waits and barriers of the GPU's header, 32 lanes a warp: what they return, how they end.

A wait in vain ends by its limit or by the abort word, on all lanes, with a report.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from host_build import Mutation
from host_lanes import LANES, Programs, Results, at, launch, one
from host_world import ABORTED, TIMED_OUT, Outcome, Windows, windows

ABORT, FLAGS, VALUES, LINE = 8, 64, 8192, 77
WINDOW_BYTES = 16384
NOTHING = -1


def _words(memory: Windows, rank: int = 0) -> np.ndarray:
    return memory[rank].view(np.int64)


def _same(results: Results) -> int:
    """Return what all lanes of a warp have got."""
    assert (results == results[0]).all(), results
    return int(results[0])


def test_words_are_loaded_stored_and_added_to() -> None:
    memory = windows(2, WINDOW_BYTES)
    large = 0x7123456789ABCDEF
    _words(memory)[FLAGS // 8] = -large
    steps = [
        ("load", FLAGS),
        ("load_acquire", FLAGS),
        ("store", 1, FLAGS, large),
        ("add", 1, FLAGS, -7),
        ("fetch_add", 1, FLAGS, 9),
        ("store_release", 1, FLAGS + 8, large - 1),
        ("put_signal", 1, FLAGS + 8, 5),
        ("store_i32", at(FLAGS + 17 * 4), -3),
        ("load_i32", at(FLAGS + 17 * 4)),
        ("store_i64", at(FLAGS + 80), -large),
        ("load_i64", at(FLAGS + 80)),
    ]
    results, outcome = launch({(0, 0, 0): steps}, memory)
    assert outcome.is_clean, outcome
    got = [_same(lanes) for lanes in results[0, 0, 0]]
    assert got[:2] == [-large, -large]
    assert got[4] == large - 7
    assert got[8] == -3
    assert got[10] == -large
    assert _words(memory, 1)[FLAGS // 8 : FLAGS // 8 + 2].tolist() == [large + 2, large + 4]


def test_adds_of_all_warps_are_counted_once_each() -> None:
    memory = windows(2, WINDOW_BYTES)
    programs: Programs = {
        (rank, block, warp): [("add", 1, FLAGS, 1), ("fetch_add", 1, FLAGS + 8, 2)] * 20
        for rank in range(2)
        for block in range(2)
        for warp in range(3)
    }
    results, outcome = launch(programs, memory, num_blocks=2, num_warps=3)
    assert outcome.is_clean, outcome
    assert _words(memory, 1)[FLAGS // 8 : FLAGS // 8 + 2].tolist() == [240, 480]
    before = results[:, :, :, 1::2, 0].reshape(-1)
    assert sorted(before.tolist()) == list(range(0, 480, 2))


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 100])
def test_the_least_of_several_words(count: int) -> None:
    rng = np.random.default_rng(count)
    for place in {0, count - 1, int(rng.integers(count))}:
        memory = windows(1, WINDOW_BYTES)
        words = _words(memory)[FLAGS // 8 :: 3][:count]
        words[:] = rng.integers(-5, 5, count) * 2**40
        words[place] = -(2**62)
        assert one("min_words", FLAGS, 24, count, windows=memory) == -(2**62)


def test_a_wait_returns_what_ended_it() -> None:
    memory = windows(1, WINDOW_BYTES)
    _words(memory)[FLAGS // 8] = 12
    assert one("wait_ge", FLAGS, 7, LINE, windows=memory) == 12


@pytest.mark.parametrize("count", [1, 5, 32, 33, 70])
def test_a_wait_for_any_prefers_the_next_from_the_first_asked_for(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(12):
        memory = windows(1, WINDOW_BYTES)
        values = rng.integers(1, 5, count)
        words = values - (rng.random(count) < 0.7)
        words[rng.integers(count)] = 9
        _words(memory)[FLAGS // 8 :: 2][:count] = words
        _words(memory)[VALUES // 8 :][:count] = values
        first = int(rng.integers(count + 1))
        order = [(first + step) % count for step in range(count)]
        expected = next(index for index in order if words[index] >= values[index])
        got = one("wait_any", FLAGS, 16, at(VALUES), count, first, LINE, windows=memory)
        assert got == expected


def test_waits_end_when_another_rank_writes() -> None:
    count = 40
    flags = [FLAGS + 8 * index for index in range(count)]
    order = np.random.default_rng(2).permutation(flags).tolist()
    memory = windows(2, WINDOW_BYTES)
    _words(memory)[VALUES // 8 :][:count] = 3
    programs: Programs = {
        (0, 0, 0): [("wait_all", FLAGS, 8, count, 3, LINE), ("load", FLAGS)],
        (0, 0, 1): [("wait_any", FLAGS, 8, at(VALUES), count, 5, LINE)],
        (0, 1, 0): [("wait_ge", flags[-1], 3, LINE)],
        (1, 0, 0): [("pause", 1000), *(("store_release", 0, flag, 3) for flag in order)],
    }
    for seed in range(4):
        memory[0, FLAGS:VALUES] = 0
        results, outcome = launch(programs, memory, num_blocks=2, num_warps=2, seed=seed)
        assert outcome.is_clean, outcome
        assert _same(results[0, 0, 0, 1]) == 3
        assert 0 <= _same(results[0, 0, 1, 0]) < count
        assert _same(results[0, 1, 0, 0]) == 3


def test_a_wait_for_no_word_is_none() -> None:
    one("wait_all", FLAGS, 8, 0, 3, LINE, windows=windows(1, WINDOW_BYTES))


def _timed_out(
    wait: Sequence[int | str], words: dict[int, int], mutation: Mutation | None = None
) -> tuple[Results, Outcome, Windows]:
    """Let warp 1 of block 1 of rank 1 wait in vain, others for what it does later."""
    memory = windows(3, WINDOW_BYTES)
    for offset, value in words.items():
        _words(memory, 1)[offset // 8] = value
    programs: Programs = {
        (1, 1, 0): [("block_sync",), ("store", 1, FLAGS + 4096, 5)],
        (1, 1, 1): [tuple(wait), ("block_sync",), ("store", 1, FLAGS + 4096, 6)],
    }
    results, outcome = launch(
        programs,
        memory,
        num_blocks=2,
        num_warps=2,
        ranks_per_node=2,
        abort_offset=ABORT,
        limit_s=0.2,
        mutation=mutation,
    )
    return results, outcome, memory


@pytest.mark.parametrize(
    ("wait", "words", "offset", "seen", "wanted"),
    [
        (("wait_ge", FLAGS, 7, LINE), {FLAGS: 6}, FLAGS, 6, 7),
        (
            ("wait_any", FLAGS, 8, at(VALUES), 3, 1, LINE),
            {FLAGS: 4, FLAGS + 8: 2, VALUES: 5, VALUES + 8: 6, VALUES + 16: 7},
            FLAGS + 8,
            2,
            6,
        ),
        (
            ("wait_all", FLAGS, 8, 36, 4, LINE),
            {**{FLAGS + 8 * index: 4 for index in range(40)}, FLAGS + 8 * 34: 3},
            FLAGS + 8 * 34,
            3,
            4,
        ),
        (("group_sync", 2, 2, LINE), {}, NOTHING, 1, 2),
    ],
    ids=["ge", "any", "all", "group"],
)
def test_a_wait_in_vain_is_told_and_ends_its_node(
    wait: Sequence[int | str], words: dict[int, int], offset: int, seen: int, wanted: int
) -> None:
    results, outcome, memory = _timed_out(wait, words)
    assert outcome.message == ""
    assert outcome.report == {
        "cause": TIMED_OUT,
        "rank": 1,
        "sm": 1,
        "warp": 1,
        "offset": offset,
        "seen": seen,
        "wanted": wanted,
        "line": LINE,
    }
    # All lanes have left in the wait; the other warp was released from the barrier by that.
    assert (results[1, 1, 1] == NOTHING).all()
    assert _words(memory, 1)[(FLAGS + 4096) // 8] == 5
    assert [_words(memory, rank)[ABORT // 8] for rank in range(3)] == [1, 1, 0]


def test_the_abort_word_ends_all_waits_of_its_rank() -> None:
    waits = [
        ("wait_ge", FLAGS, 7, LINE),
        ("wait_any", FLAGS, 8, at(VALUES), 40, 1, LINE),
        ("wait_all", FLAGS, 8, 40, 4, LINE),
        ("group_sync", 2, 3, LINE),
    ]
    memory = windows(2, WINDOW_BYTES)
    _words(memory)[VALUES // 8 :] = 5
    programs: Programs = {
        **{(0, 0, warp): [wait, ("load", ABORT)] for warp, wait in enumerate(waits)},
        (1, 0, 0): [("pause", 10**6), ("store", 0, ABORT, 1)],
    }
    results, outcome = launch(programs, memory, num_warps=4, abort_offset=ABORT, limit_s=100)
    assert outcome.message == ""
    assert (outcome.report["cause"], outcome.report["rank"]) == (ABORTED, 0)
    assert (results[0] == NOTHING).all()
    # Only who has run out of time tells the others.
    assert _words(memory, 1)[ABORT // 8] == 0


def test_the_first_report_stays() -> None:
    memory = windows(1, WINDOW_BYTES)
    programs: Programs = {
        (0, block, warp): [("wait_ge", FLAGS, 7, 10 * block + warp)]
        for block in range(2)
        for warp in range(2)
    }
    _, outcome = launch(programs, memory, num_blocks=2, num_warps=2, limit_s=0.05)
    report = outcome.report
    assert report["line"] == 10 * report["sm"] + report["warp"]
    assert (report["seen"], report["wanted"], report["offset"]) == (0, 7, FLAGS)


def test_groups_of_warps_meet_again_and_again() -> None:
    # Each warp adds to its group's word and waits; after each round the word has all additions.
    groups = {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 5}
    sizes = {group: list(groups.values()).count(group) for group in groups.values()}
    num_rounds = 8
    memory = windows(1, WINDOW_BYTES)
    programs: Programs = {
        (0, 0, warp): [
            step
            for _ in range(num_rounds)
            for step in (
                ("add", 0, FLAGS + 8 * group, 1),
                ("group_sync", group, sizes[group], LINE),
                ("load", FLAGS + 8 * group),
                ("group_sync", group, sizes[group], LINE),
            )
        ]
        for warp, group in groups.items()
    }
    for seed in range(4):
        memory[:] = 0
        results, outcome = launch(programs, memory, num_warps=6, seed=seed)
        assert outcome.is_clean, outcome
        for warp, group in groups.items():
            seen = [_same(lanes) for lanes in results[0, 0, warp, 2::4]]
            assert seen == [sizes[group] * (step + 1) for step in range(num_rounds)]


def test_a_block_meets_in_every_round() -> None:
    num_warps, num_rounds = 5, 6
    memory = windows(1, WINDOW_BYTES)
    program = [("add", 0, FLAGS, 1), ("block_sync",), ("load", FLAGS), ("block_sync",)] * num_rounds
    programs: Programs = {(0, 0, warp): program for warp in range(num_warps)}
    results, outcome = launch(programs, memory, num_warps=num_warps)
    assert outcome.is_clean, outcome
    for warp in range(num_warps):
        seen = [_same(lanes) for lanes in results[0, 0, warp, 2::4]]
        assert seen == [num_warps * (step + 1) for step in range(num_rounds)]


def test_lanes_know_where_they_are() -> None:
    memory = windows(3, WINDOW_BYTES)
    steps = [("sm_id",), ("warp_id",), ("own_address", 16), ("address", 2, 16)]
    programs: Programs = {
        (rank, block, warp): steps for rank in range(3) for block in range(2) for warp in range(2)
    }
    for defines in ((), ("EP_VIRTUAL",)):
        results, outcome = launch(programs, memory, num_blocks=2, num_warps=2, defines=defines)
        assert outcome.is_clean, outcome
        for rank, block, warp in programs:
            got = [_same(lanes) for lanes in results[rank, block, warp]]
            own = memory[rank].ctypes.data + 16
            assert got == [block, warp, own, memory[2].ctypes.data + 16]
    assert results.shape[-1] == LANES


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("waits", "if (ballot(cause != 0) != 0) report", "if (cause != 0) report"),
        ("waits", "if (peer < ep_machine.world_size &&", "if (peer == rank &&"),
        ("waits", "tells && compare_swap(address, 0, cause) == 0", "lane_id() == 1"),
        ("waits", "store_relaxed(address + 24, thread_index() / LANES);", ""),
    ],
)
def test_mistakes_in_waits_are_noticed(header: str, old: str, new: str) -> None:
    mutation = Mutation(f"cuh/{header}.cuh", old, new)
    results, outcome, memory = _timed_out(("wait_ge", FLAGS, 7, LINE), {FLAGS: 6}, mutation)
    report = {key: outcome.report.get(key) for key in ("rank", "warp", "line")}
    flags = [_words(memory, rank)[ABORT // 8] for rank in range(3)]
    assert (
        outcome.message
        or report != {"rank": 1, "warp": 1, "line": LINE}
        or flags != [1, 1, 0]
        or (results[1, 1, 1] != NOTHING).any()
    )
