"""Copies of the GPU's header by 32 lanes a warp: every byte, and none besides."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from host_build import Mutation
from host_lanes import Step, at, launch
from host_world import BulkTimes, windows

ROW_SIZES = range(0, 16384 + 16, 16)
#: Bytes between what one step writes and what the next does.
GUARD = 48
SOURCE_BYTES = 20480
FILL = 0xA5


def _windows(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return windows of two ranks: bytes to copy at rank 0, room behind them, filled."""
    rows = windows(2, SOURCE_BYTES + num_bytes, FILL)
    rng = np.random.default_rng(1)
    rows[:, :SOURCE_BYTES] = rng.integers(0, 256, (2, SOURCE_BYTES))
    return rows


def _placed(cases: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Give (source, offset in 16 bytes, size) of each case a target of its own.

    Yields:
        Source, target, size.
    """
    target = SOURCE_BYTES + GUARD
    for source, skew, num_bytes in cases:
        yield source, target + skew, num_bytes
        target += (skew + num_bytes + 15) // 16 * 16 + GUARD


def _check(
    name: str,
    cases: list[tuple[int, int, int]],
    bulk_times: BulkTimes = "at_any_time",
    defines: Sequence[str] = (),
    mutation: Mutation | None = None,
) -> None:
    placed = list(_placed(cases))
    steps: list[Step] = [
        (name, 1, target, at(source), num_bytes) for source, target, num_bytes in placed
    ]
    memory = _windows(placed[-1][1] + placed[-1][2] + 2 * GUARD - SOURCE_BYTES)
    expected = memory.copy()
    for source, target, num_bytes in placed:
        expected[1, target : target + num_bytes] = memory[0, source : source + num_bytes]
    _, outcome = launch(
        {(0, 0, 0): steps}, memory, bulk_times=bulk_times, defines=defines, mutation=mutation
    )
    assert outcome.is_clean, outcome
    wrong = np.argwhere(memory != expected)
    assert not len(wrong), wrong[:4]


def _rows() -> list[tuple[int, int, int]]:
    """Return a case for every multiple of 16 bytes, from sources that begin anywhere in a line."""
    return [(16 * (size // 16 % 9), 0, size) for size in ROW_SIZES]


def test_rows_of_every_size_are_copied() -> None:
    _check("copy_row", _rows())


@pytest.mark.parametrize("bulk_times", ["at_waits", "at_any_time", "at_once"])
def test_rows_of_every_size_are_copied_in_bulk(bulk_times: BulkTimes) -> None:
    _check("copy_row_bulk", _rows(), bulk_times)


def test_rows_of_every_size_are_copied_where_nothing_copies_in_bulk() -> None:
    _check("copy_row_bulk", _rows()[::16], defines=["EP_HOST_NO_BULK"])


def test_bytes_of_any_count_and_alignment_are_copied() -> None:
    cases = [
        (source, skew, num_bytes)
        for source in range(16)
        for skew in range(16)
        for num_bytes in [*range(0, 20), 31, 32, 36, 64, 127, 128, 129, 512, 516, 640]
    ]
    _check("copy_bytes", cases)


def test_bytes_of_larger_counts_are_copied() -> None:
    cases = [(source, source % 8, size) for size in range(4, 4096, 52) for source in (0, 4, 16, 21)]
    _check("copy_bytes", cases)


def test_listed_rows_of_the_own_rank_are_put_one_after_another() -> None:
    memory = _windows(8192)
    indices = np.array([5, 0, 0, 9, 3], np.int32)
    row_bytes, base, target = 336, 512, SOURCE_BYTES + GUARD
    memory[0, : indices.nbytes] = indices.view(np.uint8)
    expected = memory.copy()
    rows = memory[0, base : base + 16 * row_bytes].reshape(16, row_bytes)[indices]
    expected[1, target : target + rows.size] = rows.reshape(-1)
    step = ("put_rows", 1, target, len(indices), at(0), base, row_bytes)
    _, outcome = launch({(0, 0, 0): [step]}, memory)
    assert outcome.is_clean, outcome
    assert np.array_equal(memory, expected)


def test_warps_of_several_blocks_copy_in_bulk_side_by_side() -> None:
    num_blocks, num_warps, size, count = 2, 3, 9216, 5
    room = count * (size + GUARD)
    memory = _windows(num_blocks * num_warps * room)
    expected = memory.copy()
    programs = {}
    for block in range(num_blocks):
        for warp in range(num_warps):
            begin = SOURCE_BYTES + (block * num_warps + warp) * room
            source = 16 * (7 * block + warp)
            targets = [begin + step * (size + GUARD) for step in range(count)]
            programs[0, block, warp] = [
                ("copy_row_bulk", 1, to, at(source), size) for to in targets
            ]
            for to in targets:
                expected[1, to : to + size] = memory[0, source : source + size]
    for seed in range(3):
        again = windows(2, memory.shape[1])
        again[:] = memory
        _, outcome = launch(programs, again, num_blocks=num_blocks, num_warps=num_warps, seed=seed)
        assert outcome.is_clean, outcome
        assert np.array_equal(again, expected)


@pytest.mark.parametrize(
    ("name", "header", "old", "new"),
    [
        ("copy_row", "rows", "if (left == 0) return;", "return;"),
        ("copy_row", "rows", "(num_bytes / ROUND_BYTES);", "(num_bytes / 4096 / 2);"),
        ("copy_row", "rows", "load_row_if<STEP * STEP_BYTES>", "load_row_if<0>"),
        ("copy_bytes", "rows", "} else if (all % 4 == 0) {", "} else if (num_bytes % 4 == 0) {"),
        ("copy_row_bulk", "bulk", "load / NUM_STAGES & 1)", "load & 1)"),
        ("copy_row_bulk", "bulk", "        bulk_wait_read<0>();", "        bulk_wait_read<1>();"),
        ("copy_row_bulk", "bulk", "bulk_wait_read<NUM_STAGES - 1>();", "bulk_wait_read<9>();"),
        ("copy_row_bulk", "bulk", "      bulk_commit();\n", ""),
        ("copy_row_bulk", "bulk", "if (lane_id() == 0) bulk_wait_all();", ""),
        ("copy_row_bulk", "bulk", "expect_bytes(barrier, size);", "expect_bytes(barrier, 16);"),
        ("copy_row_bulk", "bulk", "  publish_barriers();\n", ""),
        ("copy_row_bulk", "bulk", "num_loads[warp] = first + num_chunks", "num_loads[warp] = 0"),
    ],
)
def test_mistakes_in_copies_are_noticed(name: str, header: str, old: str, new: str) -> None:
    mutation = Mutation(f"cuh/{header}.cuh", old, new)
    cases = [(source, 0, size) for source, _, size in _rows()[::8]]
    cases += [(source, 4, size) for source, size in ((4, 20), (5, 20), (8, 24))] * (
        name == "copy_bytes"
    )
    with pytest.raises(AssertionError):
        _check(name, cases, "at_waits", mutation=mutation)
