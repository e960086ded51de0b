"""Every way to be wrong must be seen, counted and named."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from bench.check import CheckResult, check_combine, check_dispatch
from comms.memory import POISON
from kernels.reference import Dispatched, Granularity, RoutingIndex, combine_to, dispatch_to
from kernels.shape import Shape

NUM_GUARDS = 3
RANK = 1


class World(NamedTuple):
    """Two ranks, six experts, top-2; rank 1 owns experts 3 to 5."""

    topk_idx: list[npt.NDArray[np.int32]]
    topk_weights: list[npt.NDArray[np.float32]]


class Checked(NamedTuple):
    """Outputs of a device that did everything right, free to be damaged."""

    outputs: Dispatched
    expected: Dispatched
    rows: RoutingIndex

    def result(self, num_late: int = 0) -> CheckResult:
        return check_dispatch(RANK, self.outputs, self.expected, index=self.rows, num_late=num_late)


SHAPE = Shape(1, 2, num_tokens=4, hidden=64, num_experts=6, num_topk=2, num_sms=1)


def world() -> World:
    idx = [
        np.array([[0, 3], [1, 2], [4, 5], [5, 0]], np.int32),
        np.array([[3, 1], [-1, 4]], np.int32),
    ]
    weights = [(i % 7).astype(np.float32) / np.float32(8) for i in idx]
    return World(idx, weights)


def with_guards(rows: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    guarded = np.empty((len(rows) + NUM_GUARDS, *rows.shape[1:]), rows.dtype)
    guarded.view(np.uint8)[:] = POISON
    guarded[: len(rows)] = rows
    return guarded


def checked(granularity: Granularity = "rank") -> Checked:
    rng = np.random.default_rng(0)
    index = RoutingIndex.build(world(), SHAPE, granularity)
    stride = SHAPE.dispatch_row.stride_bytes
    x = [rng.integers(0, 255, (len(i), stride), dtype=np.uint8) for i in world().topk_idx]
    expected = dispatch_to(RANK, x, index)
    outputs = Dispatched(
        with_guards(expected.recv_x).view(np.uint8),
        with_guards(expected.recv_topk_idx).view(np.int32),
        with_guards(expected.recv_topk_weights).view(np.float32),
        expected.recv_counts.copy(),
    )
    return Checked(outputs, expected, index)


@pytest.mark.parametrize(("granularity", "num_rows"), [("rank", 5), ("selection", 6)])
def test_the_right_output_passes(granularity: Granularity, num_rows: int) -> None:
    assert checked(granularity).result() == CheckResult(0, num_rows, None)


def test_swapped_rows() -> None:
    case = checked()
    case.outputs.recv_x[[1, 3]] = case.outputs.recv_x[[3, 1]]
    result = case.result()
    place = int(np.flatnonzero(case.expected.recv_x[1] != case.expected.recv_x[3])[0])
    found, wanted = case.expected.recv_x[3, place], case.expected.recv_x[1, place]
    assert (result.num_wrong, result.num_checked) == (2, 5)
    assert result.first == (
        "dispatch to rank 1, row 1: expected (source rank 0, token 2), found row of "
        f"(source rank 1, token 0); recv_x byte {place} is 0x{found:02x} instead of 0x{wanted:02x}"
    )


def test_a_dropped_row_moves_all_after_it() -> None:
    case = checked()
    case.outputs.recv_x[2:4] = case.outputs.recv_x[3:5].copy()
    case.outputs.recv_x[4] = POISON
    result = case.result()
    assert result.num_wrong == 3
    assert result.first is not None
    assert "row 2: expected (source rank 0, token 3), found row of (source rank 1" in result.first


def test_a_row_never_written() -> None:
    case = checked()
    case.outputs.recv_x[4] = POISON
    result = case.result()
    wanted = case.expected.recv_x[4, 0]
    assert result.num_wrong == 1
    assert result.first == (
        "dispatch to rank 1, row 4: expected (source rank 1, token 1), found poison: never "
        f"written; recv_x byte 0 is 0xff instead of 0x{wanted:02x}"
    )


def test_one_bit_of_one_row() -> None:
    for row in range(5):
        for place in (0, SHAPE.dispatch_row.stride_bytes - 1):
            case = checked()
            case.outputs.recv_x[row, place] ^= 1
            result = case.result()
            assert result.num_wrong == 1
            assert result.first is not None
            assert f"row {row}: " in result.first
            assert f"found recv_x byte {place} is" in result.first


def test_a_wrong_id() -> None:
    case = checked()
    case.outputs.recv_topk_idx[1, 0] = 2
    result = case.result()
    assert result.num_wrong == 1
    assert result.first is not None
    assert result.first.endswith("found recv_topk_idx element 0 is 2 instead of 1")


@pytest.mark.parametrize("granularity", ["rank", "selection"])
def test_one_bit_of_one_weight(granularity: Granularity) -> None:
    case = checked(granularity)
    case.outputs.recv_topk_weights.view(np.uint32)[2] ^= 1
    result = case.result()
    assert result.num_wrong == 1
    assert result.first is not None
    assert "recv_topk_weights element 0 is" in result.first


def test_minus_zero_is_not_plus_zero() -> None:
    case = checked()
    case.outputs.recv_topk_weights[0, 0] = -0.0
    result = case.result()
    assert result.num_wrong == 1
    assert result.first is not None
    assert result.first.endswith("is -0.0 (0x80000000) instead of 0.0 (0x00000000)")


def test_ids_never_written() -> None:
    case = checked()
    case.outputs.recv_topk_idx[0] = -1
    result = case.result()
    assert result.num_wrong == 1
    assert result.first is not None
    assert result.first.endswith(
        "poison: never written; recv_topk_idx element 1 is -1 instead of 0"
    )


def test_one_row_wrong_everywhere_is_one_wrong_row() -> None:
    case = checked()
    case.outputs.recv_x[2] = 0
    case.outputs.recv_topk_idx[2] = 7
    case.outputs.recv_topk_weights[2] = 7
    assert case.result().num_wrong == 1


def test_rows_wrong_in_different_arrays_all_count() -> None:
    case = checked()
    case.outputs.recv_x[3, 0] ^= 1
    case.outputs.recv_topk_idx[1, 0] = 2
    case.outputs.recv_topk_weights[0, 0] = 7
    result = case.result()
    assert result.num_wrong == 3
    assert result.first is not None
    assert "row 0: " in result.first


def test_wrong_counts() -> None:
    case = checked()
    case.outputs.recv_counts[:, 0] += [1, -1]
    assert case.result() == CheckResult(
        2, 5, "dispatch to rank 1: recv_counts[0, 0] is 4 instead of 3"
    )


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_guard_row_overwritten(part: int) -> None:
    case = checked()
    case.outputs[part][6, -1] = 0
    result = case.result()
    assert (result.num_wrong, result.num_checked) == (1, 5)
    assert result.first is not None
    assert "row 6: expected poison after the last row" in result.first


def test_a_row_written_twice_into_the_guard() -> None:
    case = checked()
    case.outputs.recv_x[5] = case.outputs.recv_x[4]
    result = case.result()
    assert result.num_wrong == 1
    assert result.first is not None
    assert "found row of (source rank 1, token 1)" in result.first


def test_an_output_too_short() -> None:
    case = checked()
    x, idx, weights, counts = case.outputs
    short = Dispatched(x[:3], idx[:3], weights[:3], counts)
    result = case._replace(outputs=short).result()
    assert (result.num_wrong, result.num_checked) == (2, 5)
    assert result.first is not None
    assert result.first.endswith("but recv_x ends after 3 rows")


def test_an_output_of_another_type() -> None:
    case = checked()
    wide = case.outputs._replace(recv_topk_idx=case.outputs.recv_topk_idx.astype(np.int64))
    with pytest.raises(ValueError, match="recv_topk_idx of dispatch to rank 1 must be int32"):
        case._replace(outputs=wide).result()
    flat = case.outputs._replace(recv_counts=case.outputs.recv_counts[:, 0])
    with pytest.raises(ValueError, match=r"recv_counts .* must be \(2, 1\)"):
        case._replace(outputs=flat).result()


def test_late_writes_are_wrong() -> None:
    assert checked().result(num_late=2) == CheckResult(
        2, 5, "dispatch to rank 1: 2 writes arrived after the kernel returned"
    )
    case = checked()
    case.outputs.recv_x[0] = POISON
    result = case.result(num_late=1)
    assert result.num_wrong == 2
    assert result.first is not None
    assert "1 write arrived after the kernel returned" in result.first


def test_no_rows() -> None:
    empty = World([np.full((4, 2), -1, np.int32)] * 2, [np.zeros((4, 2), np.float32)] * 2)
    index = RoutingIndex.build(empty, SHAPE, "rank")
    stride = SHAPE.dispatch_row.stride_bytes
    expected = dispatch_to(RANK, [np.zeros((4, stride), np.uint8)] * 2, index)
    assert check_dispatch(RANK, expected, expected, index=index) == CheckResult(0, 0, None)
    written = expected._replace(recv_x=np.zeros((1, stride), np.uint8))
    assert check_dispatch(RANK, written, expected, index=index).num_wrong == 1


def combined() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    index = RoutingIndex.build(world(), SHAPE, "rank")
    rng = np.random.default_rng(3)
    y = [
        rng.integers(0, 127, (index.num_recv(rank), SHAPE.combine_row.stride_bytes), dtype=np.uint8)
        for rank in range(2)
    ]
    expected = combine_to(0, y, index)
    return with_guards(expected).view(np.uint8), expected


def test_combine() -> None:
    out, expected = combined()
    assert check_combine(0, out, expected) == CheckResult(0, 4, None)
    out[[0, 2]] = out[[2, 0]]
    result = check_combine(0, out, expected)
    assert result.num_wrong == 2
    assert result.first is not None
    assert result.first.startswith(
        "combine to rank 0, row 0: expected (source rank 0, token 0), found row of (source rank 0, "
        "token 2); out byte"
    )


def test_combine_damaged() -> None:
    out, expected = combined()
    out[3, -1] ^= 0x80
    assert check_combine(0, out, expected).num_wrong == 1
    out[4] = 0
    assert check_combine(0, out, expected).num_wrong == 2
    assert check_combine(0, out, expected, num_late=5).num_wrong == 7
    out[0] = POISON
    result = check_combine(0, out, expected)
    assert result.num_wrong == 3
    assert result.first is not None
    assert "row 0: expected (source rank 0, token 0), found poison: never written" in result.first


def test_results_add_up() -> None:
    total = CheckResult(0, 4) + CheckResult(1, 5, "a") + CheckResult(2, 6, "b")
    assert total == CheckResult(3, 15, "a")
