"""A small world of GPU code under sanitizers, and mistakes that they, or the bytes, tell of.

Two ranks of two blocks of two warps hand rows on: by bulk copies and by loads and stores, through
flags that are released and acquired, block barriers and groups.
"""

import numpy as np
import numpy.typing as npt
import pytest
from host_build import Mutation, Sanitizer
from host_lanes import Programs, Step, at, launch, launch_watched
from host_world import BulkTimes, Outcome, Windows, windows

NUM_BLOCKS, NUM_WARPS, NUM_ROWS = 2, 2, 3
#: Bytes of a row: three stages of a bulk copy, the last of them short.
ROW = 8704
FLAGS, LISTS = 64, 2048
#: A block's rows: given, received by the other rank, handed on inside the block, summed; and what
#: all lanes of a warp write for the other warp.
ROUND = NUM_ROWS * ROW
GIVEN, RECEIVED, HANDED, SUMMED, SHARED, SEEN = (
    4096 + place * NUM_BLOCKS * ROUND for place in range(6)
)
WINDOW_BYTES = SEEN + NUM_BLOCKS * ROUND
NUM_SHARED = 48
POISON = 0xFF


def _given(rank: int) -> npt.NDArray[np.uint16]:
    """Return what a rank's blocks give away, BF16 `(block, row, element)`: small whole numbers."""
    rng = np.random.default_rng(rank)
    numbers = rng.integers(-8, 9, (NUM_BLOCKS, NUM_ROWS, ROW // 2)).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _giver(copy: str, rank: int, block: int) -> list[Step]:
    """Return what warp 0 of a block does: it gives rows to the other rank and sums those it got."""
    peer, flag, here = 1 - rank, FLAGS + 64 * block, block * ROUND
    lists = LISTS + 64 * block
    steps: list[Step] = []
    for row in range(NUM_ROWS):
        place = here + row * ROW
        steps += [
            (copy, peer, RECEIVED + place, at(GIVEN + place), ROW),
            ("store_release", peer, flag, row + 1),
            # Every lane writes, and nothing but the release orders it.
            ("convert", at(SHARED + place), at(GIVEN + place), NUM_SHARED),
            ("store_release", rank, flag + 8, row + 1),
            ("store_i32", at(lists + 4 * row), row),
            ("load_i32", at(lists + 4 * row)),
        ]
    return [
        *steps,
        ("block_sync",),
        ("reduce", at(SUMMED + here), NUM_ROWS, 0, at(lists), HANDED + here, ROW),
        ("group_sync", 1, 2, 50),
        ("put_signal", peer, flag + 16, 1),
    ]


def _taker(copy: str, rank: int, block: int) -> list[Step]:
    """Return what warp 1 of a block does: it waits for rows and hands them to warp 0."""
    peer, flag, here = 1 - rank, FLAGS + 64 * block, block * ROUND
    steps: list[Step] = []
    for row in range(NUM_ROWS):
        place = here + row * ROW
        steps += [
            ("wait_ge", flag, row + 1, row),
            (copy, rank, HANDED + place, at(RECEIVED + place), ROW),
            ("wait_ge", flag + 8, row + 1, 10 + row),
            ("copy_bytes", rank, SEEN + place, at(SHARED + place), 8 * NUM_SHARED),
        ]
    return [
        *steps,
        ("block_sync",),
        ("group_sync", 1, 2, 51),
        ("copy_row", rank, SUMMED + here + ROW, at(SUMMED + here), ROW),
        # The other rank says that it reads its rows no more.
        ("wait_all", flag + 16, 8, 1, 1, 52),
        ("copy_row", peer, RECEIVED + here, at(SUMMED + here), ROW),
    ]


def _programs(copy: str, num_blocks: int) -> Programs:
    return {
        (rank, block, warp): warp_of(copy, rank, block)
        for rank in range(2)
        for block in range(num_blocks)
        for warp, warp_of in enumerate((_giver, _taker))
    }


def _memory() -> Windows:
    memory = windows(2, WINDOW_BYTES)
    memory[:, RECEIVED:] = POISON
    for rank in range(2):
        memory[rank, GIVEN : GIVEN + NUM_BLOCKS * ROUND] = _given(rank).view(np.uint8).reshape(-1)
    return memory


def _is_right(memory: Windows, num_blocks: int) -> bool:
    """Return whether all rows have arrived, been handed on and summed."""
    for rank in range(2):
        for block, given in enumerate(_given(1 - rank)[:num_blocks]):
            rows = {
                place: memory[rank, place + block * ROUND :][:ROUND]
                .view(np.uint16)
                .reshape(NUM_ROWS, -1)
                for place in (HANDED, SUMMED, SHARED, SEEN)
            }
            total = (given.astype(np.uint32) << 16).view(np.float32).sum(axis=0)
            sums = (total.view(np.uint32) >> 16).astype(np.uint16)
            shared, seen = (rows[place][:, : 4 * NUM_SHARED] for place in (SHARED, SEEN))
            if not (
                np.array_equal(rows[HANDED], given)
                and np.array_equal(rows[SUMMED][:2], [sums, sums])
                and np.array_equal(shared, seen)
                and (shared != 0xFFFF).any()
            ):
                return False
    return True


def _run(
    copy: str,
    sanitizer: Sanitizer,
    *,
    num_blocks: int = NUM_BLOCKS,
    mutation: Mutation | None = None,
    seed: int = 1,
    bulk_times: BulkTimes = "at_any_time",
) -> tuple[Outcome, bool]:
    memory = _memory()
    outcome = launch_watched(
        _programs(copy, num_blocks),
        memory,
        sanitizer,
        num_blocks=num_blocks,
        num_warps=NUM_WARPS,
        mutation=mutation,
        seed=seed,
        bulk_times=bulk_times,
        limit_s=2,
    )
    return outcome, _is_right(memory, num_blocks)


@pytest.mark.parametrize("copy", ["copy_row", "copy_row_bulk", "copy_bytes"])
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_a_world_has_no_race_and_no_stray_access(copy: str, sanitizer: Sanitizer) -> None:
    outcome, is_right = _run(copy, sanitizer)
    assert outcome.is_clean, outcome
    assert is_right


@pytest.mark.parametrize("bulk_times", ["at_waits", "at_once"])
def test_a_world_has_no_race_whenever_bulk_copies_happen(bulk_times: BulkTimes) -> None:
    outcome, is_right = _run("copy_row_bulk", "thread", bulk_times=bulk_times)
    assert outcome.is_clean, outcome
    assert is_right


_DATA, _VALUES, _ENOUGH = 1024, 1088, 1
#: Of one warp, for a flag that another writes last; then every lane reads what it wrote before.
_WAITS: dict[str, Step] = {
    "ge": ("wait_ge", FLAGS, _ENOUGH, 1),
    "any": ("wait_any", FLAGS, 8, at(_VALUES), 1, 0, 2),
    "all": ("wait_all", FLAGS, 8, 1, _ENOUGH, 3),
}
_ORDERS = {
    "ge": "  sync_warp();  // orders what the other lanes read after what lane 0 has acquired\n",
    "any": "        sync_warp();  // as in wait_ge: the flag's lane has acquired for all\n",
    "all": "  sync_warp();  // as in wait_ge: every lane has acquired for all\n",
}


def _read_after(wait: str, mutation: Mutation | None = None) -> Outcome:
    memory = windows(1, 4096)
    memory[0].view(np.int64)[_VALUES // 8] = _ENOUGH
    programs: Programs = {
        (0, 0, 0): [_WAITS[wait], ("load_i32", at(_DATA))],
        (0, 0, 1): [("store_i32", at(_DATA), 7), ("store_release", 0, FLAGS, _ENOUGH)],
    }
    return launch_watched(programs, memory, "thread", num_warps=2, mutation=mutation, limit_s=2)


@pytest.mark.parametrize("wait", _WAITS)
def test_a_wait_of_one_lane_orders_what_all_lanes_read(wait: str) -> None:
    assert _read_after(wait).is_clean


@pytest.mark.parametrize("wait", _WAITS)
def test_a_wait_that_orders_for_its_lane_only_is_told(wait: str) -> None:
    outcome = _read_after(wait, Mutation("cuh/waits.cuh", _ORDERS[wait], ""))
    assert "data race" in outcome.found, outcome


def test_turns_in_any_order_give_the_same() -> None:
    for seed in range(20):
        memory = _memory()
        programs = _programs("copy_row_bulk", NUM_BLOCKS)
        _, outcome = launch(programs, memory, num_blocks=NUM_BLOCKS, num_warps=2, seed=seed)
        assert outcome.is_clean, outcome
        assert _is_right(memory, NUM_BLOCKS)


@pytest.mark.parametrize(
    ("copy", "header", "old", "new"),
    [
        # Barriers of a warp: before a release, before lanes read what another wrote, after a copy.
        (
            "copy_row",
            "cuh/releases.cuh",
            "store_word_release(i64 rank, i64 offset, i64 value) {\n  sync_warp();\n",
            "store_word_release(i64 rank, i64 offset, i64 value) {\n",
        ),
        (
            "copy_row",
            "cuh/words.cuh",
            "store_i32(address, static_cast<i32>(value));\n  sync_warp();\n",
            "store_i32(address, static_cast<i32>(value));\n",
        ),
        (
            "copy_row",
            "cuh/releases.cuh",
            "  finish_bulk();\n  sync_warp();\n  sync_block();\n",
            "  finish_bulk();\n  sync_warp();\n",
        ),
        # Releases and acquires.
        (
            "copy_row",
            "cuh/releases.cuh",
            "store_release(at(rank, offset), value)",
            "store_relaxed(at(rank, offset), value)",
        ),
        ("copy_row", "cuh/releases.cuh", "if (lane_id() == 0) release_system();", ""),
        (
            "copy_row",
            "cuh/waits.cuh",
            "while ((seen = load_acquire(flag)) < value",
            "while ((seen = load_relaxed(flag)) < value",
        ),
        ("copy_row", "cuh/host.h", "counter, 1u, __ATOMIC_ACQ_REL", "counter, 1u, 0"),
        # Bulk copies: a wait that is missing or for another phase, and the fence before them.
        ("copy_row_bulk", "cuh/bulk.cuh", "    fence_to_bulk();\n", ""),
        ("copy_row_bulk", "cuh/bulk.cuh", "load / NUM_STAGES & 1)", "~(load / NUM_STAGES) & 1)"),
        ("copy_row_bulk", "cuh/bulk.cuh", "if (lane_id() == 0) bulk_wait_all();", ""),
        (
            "copy_row_bulk",
            "cuh/bulk.cuh",
            "if (lane_id() == 0) bulk_wait_all();",
            "if (lane_id() == 0) bulk_wait_read<0>();",
        ),
        ("copy_row_bulk", "cuh/bulk.cuh", "        bulk_wait_read<0>();\n", "        ;\n"),
    ],
)
def test_mistakes_are_told(copy: str, header: str, old: str, new: str) -> None:
    mutation = Mutation(header, old, new)
    outcome, is_right = _run(copy, "thread", num_blocks=1, mutation=mutation, bulk_times="at_once")
    assert "data race" in outcome.found or outcome.message or not is_right, outcome
