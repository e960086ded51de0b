"""Workloads: sizes from presets and files, rows that name their place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.workloads.workload import POOL_ROWS, Workload
from comms.errors import UsageError
from kernels.fp8 import dequantize_rows, quantize_rows
from kernels.rows import RowLayout

WORK = Workload.from_preset("deepseek-v3", 64)
FP8 = RowLayout(7168, "fp8", 192)
BF16 = RowLayout(7168, "bf16", 192)


def _decode(rows: npt.NDArray[np.uint8], layout: RowLayout) -> dict[str, npt.NDArray[np.int64]]:
    """Read the digits of base 64 at the head of a row, by the order that the workload documents."""
    if layout.dtype == "fp8":
        digits = rows[:, :8].astype(np.int64)
    else:
        digits = dequantize_rows(rows, layout)[:, :8].astype(np.int64)
    return {
        "row": digits[:, 0] + 64 * digits[:, 2] + 64**2 * digits[:, 4] + 64**3 * digits[:, 5],
        "rank": digits[:, 1] + 64 * digits[:, 3],
        "salt": digits[:, 6] + 64 * digits[:, 7],
    }


def test_a_preset_fills_the_sizes() -> None:
    assert (WORK.hidden, WORK.num_experts, WORK.num_topk, WORK.num_tokens) == (7168, 256, 8, 64)
    assert (WORK.num_groups, WORK.num_topk_groups, WORK.prefix) == (8, 4, 192)
    assert (WORK.dispatch_dtype, WORK.combine_dtype, WORK.routing) == ("fp8", "bf16", "uniform")


def test_the_routing_is_that_of_the_sizes_and_seed() -> None:
    work = replace(WORK, routing="groups", masked_ratio=0.25)
    routing = work.topk(8, 4)
    assert [idx.shape for idx in routing.topk_idx] == [(64, 8)] * 8
    assert all((idx == -1).sum() == 128 for idx in routing.topk_idx)
    again, other = work.topk(8, 8), replace(work, seed=1).topk(8, 8)
    assert np.array_equal(routing.topk_idx, again.topk_idx)
    assert not np.array_equal(routing.topk_idx, other.topk_idx)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden"),
        ({"prefix": 0}, "prefix"),
        ({"dispatch_dtype": "fp4"}, "fp4"),
        ({"combine_dtype": "fp8"}, "combine_dtype"),
        ({"routing": "zipf"}, "zipf"),
    ],
)
def test_impossible_workloads_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(WORK, **changes)


def test_a_world_is_whole_nodes() -> None:
    with pytest.raises(UsageError, match="world_size 8 must be a multiple of ranks_per_node 3"):
        WORK.topk(8, 3)


def test_a_matrix_sets_the_sizes(tmp_path: Path) -> None:
    # A row of 7168 FP8 elements is 7392 B, one of BF16 14336 B.
    (tmp_path / "m.txt").write_text("0 7393\n14336 14337")
    work = Workload.from_preset("deepseek-v3", 64, f"matrix:{tmp_path / 'm.txt'}")
    assert (work.num_tokens, work.num_experts, work.num_topk, work.num_groups) == (4, 2, 1, 0)
    assert [len(idx) for idx in work.topk(2, 1).topk_idx] == [2, 4]
    wide = replace(work, dispatch_dtype="bf16")
    assert wide.num_tokens == 3
    assert [len(idx) for idx in wide.topk(2, 2).topk_idx] == [1, 3]


@pytest.mark.parametrize(("shape", "num_tokens"), [((2, 3, 4), 3), ((6, 4), 64)])
def test_a_file_sets_the_sizes(tmp_path: Path, shape: tuple[int, ...], num_tokens: int) -> None:
    np.save(tmp_path / "a.npy", np.broadcast_to(np.arange(4), shape))
    work = Workload.from_preset("deepseek-v3", 64, f"file:{tmp_path / 'a.npy'}")
    assert (work.num_tokens, work.num_topk, work.num_experts) == (num_tokens, 4, 256)
    assert [len(idx) for idx in work.topk(2, 2).topk_idx] == [3, 3]


@pytest.mark.parametrize(
    "layout", [FP8, BF16, RowLayout(2880, "fp8", 2880), RowLayout(60, "bf16", 60)]
)
def test_rows_name_their_place(layout: RowLayout) -> None:
    rows = WORK.x(130, 5000, layout, 77)
    assert rows.shape == (5000, layout.stride_bytes)
    found = _decode(rows, layout)
    assert np.array_equal(found["row"], np.arange(5000))
    assert (found["rank"] == 130).all()
    assert (found["salt"] == 77).all()


@pytest.mark.parametrize("layout", [FP8, BF16, RowLayout(2880, "fp8", 2880)])
def test_rows_are_finite_and_never_poison(layout: RowLayout) -> None:
    rows = WORK.x(3, POOL_ROWS, layout, 1)
    assert np.isfinite(dequantize_rows(rows, layout)).all()
    data = rows[:, : layout.moved]
    if layout.dtype == "fp8":
        assert not np.isin(data, [0x7F, 0xFF]).any()
    else:
        assert not (rows.view(np.uint16) == 0xFFFF).any()


@pytest.mark.parametrize("layout", [FP8, BF16])
def test_neighbours_and_ranks_differ_beyond_their_names(layout: RowLayout) -> None:
    rows = WORK.x(0, 2 * POOL_ROWS, layout, 1)
    body = slice(16, layout.data_bytes)
    assert len(np.unique(rows[:POOL_ROWS, body], axis=0)) == POOL_ROWS
    assert np.array_equal(rows[:POOL_ROWS, body], rows[POOL_ROWS:, body])
    # One row off, most elements are wrong, the tail's too.
    for part in (slice(16, 128), slice(layout.data_bytes - 64, layout.data_bytes)):
        assert (rows[1:, part] != rows[:-1, part]).mean() > 0.7
    other = WORK.x(1, POOL_ROWS, layout, 1)
    assert (other[:, body] != rows[:POOL_ROWS, body]).mean() > 0.7


def test_salts_seeds_and_directions_differ() -> None:
    body = slice(16, BF16.data_bytes)
    base = WORK.x(0, 64, BF16, 1)[:, body]
    assert np.array_equal(base, WORK.x(0, 64, BF16, 1)[:, body])
    for other in (
        WORK.x(0, 64, BF16, 2),
        WORK.y(0, 64, BF16, 1),
        replace(WORK, seed=1).x(0, 64, BF16, 1),
    ):
        assert (other[:, body] != base).mean() > 0.7


def test_a_rank_of_no_rows_is_empty() -> None:
    assert WORK.x(0, 0, FP8, 1).shape == (0, FP8.stride_bytes)
    assert WORK.y(0, 0, BF16, 1).shape == (0, BF16.stride_bytes)


def test_rows_may_be_written_without_harm() -> None:
    first = WORK.x(0, 8, FP8, 1)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(WORK.x(0, 8, FP8, 1), kept)


def test_a_prefix_has_the_values_of_the_whole_row() -> None:
    whole = WORK.y(0, 100, RowLayout(7168, "bf16", 7168), 1).view(np.uint16)
    prefix = WORK.y(0, 100, BF16, 1).view(np.uint16)
    assert np.array_equal(prefix[:, :192], whole[:, BF16.kept_elements()])


def test_values_meet_the_corners_of_the_formats() -> None:
    layout = RowLayout(7168, "bf16", 7168)
    values = dequantize_rows(WORK.y(0, POOL_ROWS, layout, 1), layout)
    groups = values.reshape(POOL_ROWS, -1, 128)[:, 1:]
    share_zero = (groups == 0).all(axis=2).mean()
    assert 0.02 < share_zero < 0.045
    assert 0.05 < (groups == 0).mean() - share_zero < 0.08
    zeros = groups[groups == 0]
    assert 0.3 < np.signbit(zeros).mean() < 0.7
    subnormal = (groups != 0) & (np.abs(groups) < 2.0**-126)
    assert 0.005 < subnormal.mean() < 0.03
    scales = np.abs(groups).max(axis=2)
    assert scales[scales > 1e-30].max() / scales[scales > 1e-30].min() > 2**14

    fp8 = RowLayout(7168, "fp8", 7168)
    rows = WORK.x(0, POOL_ROWS, fp8, 1)
    scale = np.ascontiguousarray(rows[:, 7168 : 7168 + 224]).view(np.float32)
    # The group of zeros has the least scale; quantising again changes nothing but the stamps.
    assert scale.min() == np.float32(1e-4) / np.float32(448)
    assert len(np.unique(scale)) > 1000
    assert (rows[:, 128:7168] & 0x7F).max() == 0x7E
    again = quantize_rows(dequantize_rows(rows, fp8), fp8)
    assert (again[:, 128:7168] == rows[:, 128:7168]).mean() > 0.97
