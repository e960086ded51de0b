"""Sums of rows by the GPU's header with 32 lanes a warp, bit for bit against the oracle."""

import numpy as np
import pytest
from bf16_rows import SPECIAL_SUMS, Bf16, Float32, expected_sum, make_rows
from host_build import Mutation
from host_lanes import Step, at, launch
from host_world import Windows, windows

ROW_SIZES = range(16, 16384 + 16, 16)
MOST_ROWS, MOST_BYTES = 32, 16384
#: Where things are in a window: lists of ranks, rows and weights, rows to add, sums.
RANKS, ROWS, WEIGHTS, POOL = 0, 4096, 8192, 12288
SUMS = POOL + MOST_ROWS * MOST_BYTES
GUARD, FILL = 64, 0xA5

#: Bytes of a row, rows to add, whether they are weighted, parts.
Case = tuple[int, int, bool, int]


def _pool(rng: np.random.Generator) -> Bf16:
    """Return BF16 of which few are awkward: rows of any stride overlap them."""
    count = MOST_ROWS * MOST_BYTES // 2
    close, awkward = make_rows(rng, 2, count)
    plain = rng.integers(115, 140, count) << 7 | (close & 0x807F)
    return np.where(rng.random(count) < 0.02, awkward, plain).astype(np.uint16)


class Sums:
    """Steps that add rows of two ranks, and what they should write."""

    def __init__(self, total_bytes: int) -> None:
        rng = np.random.default_rng(3)
        self.memory: Windows = windows(2, SUMS + total_bytes, FILL)
        self.pools = [_pool(rng) for _ in range(2)]
        for rank, pool in enumerate(self.pools):
            self.memory[rank, POOL:SUMS] = pool.view(np.uint8)
        # A step's rows begin at `num_rows` in these lists.
        self.ranks = rng.integers(0, 2, 128).astype(np.int32)
        self.rows = rng.integers(0, MOST_ROWS, 128).astype(np.int32)
        self.weights = (2 * rng.random(128, np.float32)).astype(np.float32)
        self.weights[[3, 50]] = -0.0, 1e-40
        for place, values in ((RANKS, self.ranks), (ROWS, self.rows), (WEIGHTS, self.weights)):
            self.memory[0, place : place + values.nbytes] = values.view(np.uint8)
        self.steps: list[Step] = []
        self.expected = self.memory[0].copy()
        self.end = SUMS

    def add(self, case: Case) -> None:
        """Add a case's steps; each writes behind the last."""
        row_bytes, num_rows, is_weighted, num_parts = case
        first = 4 * num_rows
        ranks, rows, weights = at(RANKS + first), at(ROWS + first), at(WEIGHTS + first)
        out = self.end + GUARD
        tail = num_rows, ranks, rows, POOL, row_bytes
        if is_weighted:
            self.steps += [
                ("reduce_weighted", at(out), *tail, weights, number, num_parts)
                for number in range(num_parts)
            ]
        else:
            self.steps.append(("reduce", at(out), *tail))
        self.expected[out : out + row_bytes] = self._sum(case).view(np.uint8)
        self.end = out + row_bytes

    def _sum(self, case: Case) -> Bf16:
        row_bytes, num_rows, is_weighted, _ = case
        if num_rows == 0:
            return np.zeros(row_bytes // 2, np.uint16)
        taken = slice(num_rows, 2 * num_rows)
        found = [
            self.pools[rank][row * row_bytes // 2 : (row + 1) * row_bytes // 2]
            for rank, row in zip(self.ranks[taken], self.rows[taken], strict=True)
        ]
        return expected_sum(found, self.weights[taken] if is_weighted else None)

    def check(self, defines: tuple[str, ...], mutation: Mutation | None) -> None:
        """Run the steps and compare all that they could have written."""
        _, outcome = launch(
            {(0, 0, 0): self.steps}, self.memory, defines=defines, mutation=mutation
        )
        assert outcome.is_clean, outcome
        wrong = np.flatnonzero(self.memory[0] != self.expected)
        assert not len(wrong), wrong[:8]


def _check(
    cases: list[Case], defines: tuple[str, ...] = (), mutation: Mutation | None = None
) -> None:
    sums = Sums(sum(case[0] + GUARD for case in cases) + GUARD)
    for case in cases:
        sums.add(case)
    sums.check(defines, mutation)


FEW_OR_MANY = pytest.mark.parametrize("defines", [(), ("EP_MANY_WARPS",)], ids=["few", "many"])


@FEW_OR_MANY
def test_rows_of_every_size_are_added(defines: tuple[str, ...]) -> None:
    _check([(size, (1, 2, 3, 5, 8, 4, 9)[size // 16 % 7], False, 1) for size in ROW_SIZES], defines)


@FEW_OR_MANY
def test_rows_of_every_size_are_added_with_weights(defines: tuple[str, ...]) -> None:
    _check([(size, (1, 2, 3, 5, 8, 4, 9)[size // 16 % 7], True, 1) for size in ROW_SIZES], defines)


@FEW_OR_MANY
def test_rows_of_every_size_are_added_by_parts(defines: tuple[str, ...]) -> None:
    sizes = [*range(16, 1024, 16), *range(1024, 16400, 48)]
    cases = [
        (size, (8, 3, 1)[size // 16 % 3], True, (2, 3, 8, 32)[size % 64 // 16]) for size in sizes
    ]
    _check(cases, defines)


@FEW_OR_MANY
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
def test_any_number_of_rows_is_added(defines: tuple[str, ...], is_weighted: bool) -> None:
    sizes, counts = (16, 48, 496, 528, 2064, 4112), [*range(23), 32]
    cases = [(size, count, is_weighted, 1) for size in sizes for count in counts]
    _check(cases, defines)


def _check_special(defines: tuple[str, ...] = (), mutation: Mutation | None = None) -> None:
    row_bytes = 208
    memory = windows(1, 65536)
    lists = np.arange(32, dtype=np.int32)
    memory[0, ROWS : ROWS + lists.nbytes] = lists.view(np.uint8)
    steps: list[Step] = []
    for index, (column, weights, _) in enumerate(SPECIAL_SUMS):
        base, listed = POOL + index * 1024, at(WEIGHTS + 16 * index)
        out = at(POOL + index * 1024 + 3 * row_bytes)
        rows = np.repeat(np.array(column, np.uint16), row_bytes // 2).view(np.uint8)
        memory[0, base : base + rows.size] = rows
        tail = len(column), 0, at(ROWS), base, row_bytes
        if weights is None:
            steps.append(("reduce", out, *tail))
        else:
            values: Float32 = np.array(weights, np.float32)
            memory[0, listed : listed + values.nbytes] = values.view(np.uint8)
            steps.append(("reduce_weighted", out, *tail, listed, 0, 1))
    _, outcome = launch({(0, 0, 0): steps}, memory, defines=defines, mutation=mutation)
    assert outcome.is_clean, outcome
    for index, (column, weights, result) in enumerate(SPECIAL_SUMS):
        begin = POOL + index * 1024 + 3 * row_bytes
        found = memory[0, begin : begin + row_bytes].view(np.uint16)
        assert set(found.tolist()) == {int(result)}, (column, weights)


@FEW_OR_MANY
def test_special_values(defines: tuple[str, ...]) -> None:
    _check_special(defines)


def _check_empty(mutation: Mutation | None = None) -> None:
    memory = windows(1, 4096, FILL)
    steps: list[Step] = [
        ("reduce", at(64), 0, 1, 2, 0, 48),
        ("reduce_weighted", at(256), 0, 1, 2, 0, 48, 3, 0, 1),
    ]
    _, outcome = launch({(0, 0, 0): steps}, memory, mutation=mutation)
    assert outcome.is_clean, outcome
    for out in (64, 256):
        assert (memory[0, out : out + 48] == 0).all()
        assert (memory[0, out + 48 : out + 64] == FILL).all()


def test_no_row_reads_no_list() -> None:
    _check_empty()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight, IS_FIRST && row == 0, wanted);", "weight, row == 0, wanted);"),
        ("sum = WEIGHTED ? multiply_f32(weight, value) : value;", "sum = value;"),
        ("wanted = row == 0 || first + row < num_rows;", "wanted = true;"),
        ("store_row(out + static_cast<u32>(column), {});", ";"),
        ("list.num_rows <= IN_FLIGHT / 4", "list.num_rows <= IN_FLIGHT / 2"),
        ("word & 0xffff0000u : word << 16", "word << 16 : word & 0xffff0000u"),
        ("/ 32 * number / num_parts * 32", "* number / num_parts"),
        ("store_row_if<0>(left - step", "store_row_if<0>(left + 1 - step"),
    ],
)
def test_mistakes_in_sums_are_noticed(old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        _check_a_few(Mutation("cuh/rows.cuh", old, new))


def _check_a_few(mutation: Mutation | None) -> None:
    cases: list[Case] = [
        (size, count, is_weighted, 1 + 2 * is_weighted)
        for size in (16, 80, 496, 2064)
        for count in (1, 2, 3, 4, 5, 8, 9, 22)
        for is_weighted in (False, True)
    ]
    _check(cases, mutation=mutation)
    _check_special(mutation=mutation)
    _check_empty(mutation)


def test_no_mistake_is_noticed_where_there_is_none() -> None:
    _check_a_few(None)
