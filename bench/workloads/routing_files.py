"""Routing read from files: recorded `topk_idx`, or a matrix of bytes between ranks."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.workloads.gate import Gate
from comms.errors import UsageError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TopkFile:
    """What an .npy or .npz file holds.

    Attributes:
        topk_idx: integers `(ranks, tokens, topk)` or `(tokens, topk)`.
        topk_weights: float32, same shape, None where the file has none.
    """

    topk_idx: npt.NDArray[np.integer]
    topk_weights: Float32 | None


def load_topk(path: Path) -> TopkFile:
    """Read a file of recorded selections: `topk_idx` alone (.npy), or with `topk_weights` (.npz).

    Raises:
        UsageError: no such file, or one that does not hold selections.
    """
    arrays = _read_arrays(path)
    if "topk_idx" not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise UsageError(f"routing file {path} must hold topk_idx, it holds {held}")
    topk_idx, weights = arrays["topk_idx"], arrays.get("topk_weights")
    if topk_idx.dtype.kind not in "iu":
        raise UsageError(f"topk_idx of {path} must be integers, it is {topk_idx.dtype}")
    if topk_idx.ndim not in (2, 3) or topk_idx.shape[-1] == 0:
        raise UsageError(
            f"topk_idx of {path} must be (ranks, tokens, topk) or (tokens, topk), its shape is "
            f"{topk_idx.shape}"
        )
    if weights is None:
        return TopkFile(topk_idx, None)
    if weights.shape != topk_idx.shape or weights.dtype.kind != "f":
        raise UsageError(
            f"topk_weights of {path} must be floats of shape {topk_idx.shape}, they are "
            f"{weights.dtype} of shape {weights.shape}"
        )
    with np.errstate(over="ignore"):
        weights = weights.astype(np.float32)
    if not np.isfinite(weights[topk_idx != -1]).all():
        raise UsageError(f"topk_weights of {path} must be finite in float32")
    return TopkFile(topk_idx, weights)


def split_topk(file: TopkFile, path: Path, gate: Gate) -> tuple[list[Int32], list[Float32] | None]:
    """Return a file's selections and weights by rank.

    `(tokens, topk)` is split in order, the first ranks having one token more where it does not
    divide.

    Raises:
        UsageError: the selections do not fit the gate.
    """
    idx = file.topk_idx
    if idx.ndim == 3 and len(idx) != gate.world_size:
        raise UsageError(
            f"routing file {path} has {len(idx)} ranks, the world has {gate.world_size}; "
            "run it with as many ranks"
        )
    if idx.shape[-1] != gate.num_topk:
        raise UsageError(
            f"routing file {path} has top-{idx.shape[-1]}, not num_topk {gate.num_topk}; "
            "set num_topk to it"
        )
    _check_ids(idx.reshape(-1, gate.num_topk), path, gate)
    by_rank = np.array_split(idx, gate.world_size) if idx.ndim == 2 else list(idx)
    most = max(map(len, by_rank))
    if most > gate.num_tokens:
        raise UsageError(
            f"routing file {path} has {most} tokens on a rank, num_tokens is {gate.num_tokens}; "
            f"set num_tokens to {most}"
        )
    topk_idx = [each.astype(np.int32, order="C") for each in by_rank]
    if file.topk_weights is None:
        return topk_idx, None
    if file.topk_weights.ndim == 2:
        return topk_idx, np.array_split(file.topk_weights, gate.world_size)
    return topk_idx, list(file.topk_weights)


def load_matrix(path: Path) -> Int64:
    """Read a square matrix of bytes, int64 `(ranks, ranks)`: row i, column j is sent by i to j.

    Raises:
        UsageError: no such file, or no square matrix of byte counts.
    """
    if not path.is_file():
        raise UsageError(f"no routing matrix {str(path)!r}; give the path of a text file")
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        values = [[int(field) for field in row] for row in rows]
    except ValueError:
        raise UsageError(f"routing matrix {path} must hold whole numbers only") from None
    if not values or {len(row) for row in values} != {len(values)}:
        widths = sorted({len(row) for row in values})
        raise UsageError(
            f"routing matrix {path} must be square, it has {len(values)} rows of {widths} numbers"
        )
    if not all(0 <= value < 1 << 62 for row in values for value in row):
        raise UsageError(f"routing matrix {path} must hold byte counts from 0 to 2**62")
    return np.array(values, np.int64)


def matrix_rows(matrix: Int64, row_bytes: int) -> Int64:
    """Return how many rows carry each count of bytes, the last one partly filled."""
    return -(-matrix // row_bytes)


def matrix_topk(path: Path, gate: Gate) -> list[Int32]:
    """Return top-1 selections that send a matrix, one expert a rank, by source rank.

    A source's rows to different ranks are interleaved in proportion to their numbers.

    Raises:
        UsageError: no matrix, or one that does not fit the gate.
    """
    rows = matrix_rows(load_matrix(path), gate.row_bytes)
    if len(rows) != gate.world_size:
        raise UsageError(
            f"routing matrix {path} has {len(rows)} ranks, the world has {gate.world_size}; "
            "run it with as many ranks"
        )
    if (gate.num_topk, gate.num_experts) != (1, gate.world_size):
        raise UsageError(
            f"routing matrix {path} needs num_topk 1 and num_experts {gate.world_size}, got "
            f"{gate.num_topk} and {gate.num_experts}"
        )
    most = int(rows.sum(axis=1).max())
    if most > gate.num_tokens:
        raise UsageError(
            f"routing matrix {path} has {most} rows on a rank, num_tokens is {gate.num_tokens}; "
            f"set num_tokens to {most}"
        )
    return [_interleave(row)[:, None] for row in rows]


def _interleave(num_rows: Int64) -> Int32:
    """Return destinations so that any stretch has its share of each, int32 `(num_rows.sum(),)`."""
    destination = np.repeat(np.arange(len(num_rows)), num_rows)
    nth = np.arange(len(destination)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    position = (2 * nth + 1) / (2 * num_rows[destination])
    return destination[np.lexsort((destination, position))].astype(np.int32)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise UsageError(f"no routing file {str(path)!r}; give the path of an .npy or .npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"topk_idx": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"routing file {path} cannot be read as .npy or .npz: {error}") from error


def _check_ids(topk_idx: npt.NDArray[np.integer], path: Path, gate: Gate) -> None:
    wrong = (topk_idx < -1) | (topk_idx >= gate.num_experts)
    if wrong.any():
        token, k = np.argwhere(wrong)[0]
        raise UsageError(
            f"routing file {path} selects expert {topk_idx[token, k]} in token {token}, "
            f"ids must be -1 or below num_experts {gate.num_experts}"
        )
    ascending = np.sort(topk_idx, axis=1)
    twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    if twice.any():
        token, k = np.argwhere(twice)[0]
        raise UsageError(
            f"routing file {path} selects expert {ascending[token, k]} twice in token {token}; an "
            "expert may appear once in a token"
        )
