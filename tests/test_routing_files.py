"""Routing from files: what is read, how it is split, and what a bad file says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.workloads.gate import Gate
from bench.workloads.routing import Routing, generate, parse_routing
from bench.workloads.workload import Workload
from comms.errors import UsageError

#: Two ranks, two tokens each, top-2 of 8.
IDX = np.array([[[3, 1], [0, -1]], [[7, 2], [-1, -1]]], np.int64)
GATE = Gate(2, 2, 8, 2)


def _file(path: Path, gate: Gate) -> Routing:
    return generate(parse_routing(f"file:{path}"), gate)


def _matrix(path: Path, text: str, gate: Gate) -> Routing:
    path.write_text(text)
    return generate(parse_routing(f"matrix:{path}"), gate)


def test_ranks_of_a_file_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IDX)
    routing = _file(tmp_path / "a.npy", GATE)
    assert [idx.tolist() for idx in routing.topk_idx] == IDX.tolist()
    assert {idx.dtype for idx in routing.topk_idx} == {np.dtype(np.int32)}
    for idx, weights in zip(routing.topk_idx, routing.topk_weights, strict=True):
        assert ((weights > 0) == (idx >= 0)).all()
    assert routing.topk_weights[0][1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("world_size", "sizes"), [(2, [3, 2]), (4, [2, 1, 1, 1]), (8, [1] * 5 + [0] * 3)]
)
def test_flat_tokens_are_split_evenly(tmp_path: Path, world_size: int, sizes: list[int]) -> None:
    flat = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [1, 0]], np.uint8)
    np.save(tmp_path / "a.npy", flat)
    routing = _file(tmp_path / "a.npy", Gate(world_size, 3, 8, 2))
    assert [len(idx) for idx in routing.topk_idx] == sizes
    assert np.array_equal(np.concatenate(routing.topk_idx), flat)


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 2)])
def test_weights_of_a_file_are_its_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = np.array([0.5, 0.25, 2, np.nan, 1, 1, 9, 9]).reshape(shape)
    np.savez(tmp_path / "a.npz", topk_idx=IDX.reshape(shape), topk_weights=weights)
    found = np.concatenate(_file(tmp_path / "a.npz", GATE).topk_weights)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 0.25], [2, 0], [1, 1], [0, 0]]


def test_masks_apply_to_files_and_leave_them_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", topk_idx=IDX, topk_weights=np.ones(IDX.shape, np.float32))
    masked = _file(tmp_path / "a.npz", Gate(2, 2, 8, 2, masked_ratio=1.0))
    assert all((idx == -1).all() for idx in masked.topk_idx)
    assert not np.concatenate(masked.topk_weights).any()
    assert np.array_equal(np.load(tmp_path / "a.npz")["topk_idx"], IDX)


@pytest.mark.parametrize(
    ("idx", "gate", "message"),
    [
        (IDX, Gate(4, 2, 8, 2), "has 2 ranks, the world has 4"),
        (IDX, Gate(2, 2, 8, 3), "top-2, not num_topk 3"),
        (IDX, Gate(2, 1, 8, 2), "set num_tokens to 2"),
        (IDX, Gate(2, 2, 7, 2), r"expert 7 in token 2, .*num_experts 7"),
        (IDX - 1, GATE, "expert -2 in token 1"),
        (np.where(IDX == 1, 3, IDX), GATE, "expert 3 twice in token 0"),
        (IDX.astype(np.float32), GATE, "must be integers, it is float32"),
        (IDX[0, 0], GATE, r"its shape is \(2,\)"),
        (IDX[:, :, :0], GATE, r"its shape is \(2, 2, 0\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, idx: npt.NDArray[np.generic], gate: Gate, message: str
) -> None:
    np.save(tmp_path / "a.npy", idx)
    with pytest.raises(UsageError, match=message):
        _file(tmp_path / "a.npy", gate)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 2), np.float32), r"floats of shape \(2, 2, 2\)"),
        (np.ones(IDX.shape, np.int64), "int64"),
        (np.full(IDX.shape, np.inf), "finite"),
        (np.full(IDX.shape, 1e300), "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, weights: npt.NDArray[np.generic], message: str
) -> None:
    np.savez(tmp_path / "a.npz", topk_idx=IDX, topk_weights=weights)
    with pytest.raises(UsageError, match=message):
        _file(tmp_path / "a.npz", GATE)


def _nothing(path: Path) -> None:
    """Leave no file."""


def _text(path: Path) -> None:
    path.write_text("0 1 2")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def _other_names(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, ids=IDX)


def _torn(path: Path) -> None:
    _other_names(path)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_nothing, "no routing file"),
        (_text, "cannot be read"),
        (_empty, "cannot be read"),
        (_pickled, "cannot be read"),
        (_torn, "cannot be read"),
        (_other_names, "must hold topk_idx, it holds ids"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.npy"
    write(path)
    with pytest.raises(UsageError, match=message):
        Workload.from_preset("deepseek-v3", 4, f"file:{path}")


def test_a_matrix_becomes_top_1_tokens(tmp_path: Path) -> None:
    gate = Gate(3, 6, 3, 1, row_bytes=100)
    routing = _matrix(tmp_path / "m.txt", "0 100 301\n\n1 0 0\n 0 0\t0\n", gate)
    assert [idx[:, 0].tolist() for idx in routing.topk_idx] == [[2, 2, 1, 2, 2], [0], []]
    assert [weights.shape for weights in routing.topk_weights] == [(5, 1), (1, 1), (0, 1)]
    assert (routing.topk_weights[0] == 1).all()


def test_a_matrix_interleaves_destinations_in_proportion(tmp_path: Path) -> None:
    text = "\n".join(["500 1000 1500 0"] + ["0 0 0 0"] * 3)
    routing = _matrix(tmp_path / "m.txt", text, Gate(4, 3000, 4, 1, row_bytes=1))
    for first in range(0, 3000, 60):
        stretch = np.bincount(routing.topk_idx[0][first : first + 60, 0], minlength=4)
        assert np.abs(stretch - [10, 20, 30, 0]).max() <= 1


@pytest.mark.parametrize(
    ("text", "gate", "message"),
    [
        ("1 2\n3 4", Gate(3, 9, 3, 1), "has 2 ranks, the world has 3"),
        ("1 2\n3 4", Gate(2, 9, 8, 1), "num_topk 1 and num_experts 2, got 1 and 8"),
        ("1 2\n3 4", Gate(2, 6, 2, 1), "set num_tokens to 7"),
        ("1 2 3\n4 5 6", Gate(2, 9, 2, 1), "must be square"),
        ("1 2\n3", Gate(2, 9, 2, 1), "must be square"),
        ("", Gate(2, 9, 2, 1), "must be square"),
        ("1 2\n3 x", Gate(2, 9, 2, 1), "whole numbers"),
        ("1 2\n3 -4", Gate(2, 9, 2, 1), "from 0 to"),
        ("1 2\n3 99999999999999999999", Gate(2, 9, 2, 1), "from 0 to"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(
    tmp_path: Path, text: str, gate: Gate, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _matrix(tmp_path / "m.txt", text, gate)


def test_a_missing_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no routing matrix"):
        Workload.from_preset("deepseek-v3", 4, f"matrix:{tmp_path / 'none.txt'}")
