"""What a warp's 32 lanes do together, for devices whose warps are one worker."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from comms.compiling import inner
from comms.raw import as_pointer
from kernels.isa import ExpertLists, Matrix, Selected, TopkRow


def _unary(name: str, source: types.Type, target: types.Type) -> Any:
    def typed(typingctx, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), codegen

    typed.__name__ = name
    return intrinsic(typed)


as_float = _unary("as_float", types.uint32, types.float32)
as_bits = _unary("as_bits", types.float32, types.uint32)


@intrinsic
def fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """`fma(a, b, c)`: a * b + c in FP32, rounded once."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value = ir.FloatType()
        signature_type = ir.FunctionType(value, [value] * 3)
        function = builder.module.declare_intrinsic("llvm.fma", [value], signature_type)
        return builder.call(function, args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@inner
def to_bf16(value: float) -> Any:
    """Return the BF16 bits of an FP32 value, rounded to nearest even; any NaN becomes 0x7FFF."""
    bits = as_bits(value)
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint32(0x7FFF)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)


@inner
def part_begin(row_bytes: int, number: int, num_parts: int) -> int:
    """Return where a part of a row's columns begins: a multiple of 32, or the end of the row."""
    if number == num_parts:
        return row_bytes
    return row_bytes // 32 * number // num_parts * 32


@inner
def start_sum(sums: Any, row_addr: int, num_elements: int) -> None:
    """Set FP32 sums to a BF16 row."""
    row = carray(as_pointer(row_addr), (num_elements,), np.uint16)
    for index in range(num_elements):
        sums[index] = as_float(np.uint32(row[index]) << np.uint32(16))


@inner
def add_row(sums: Any, row_addr: int, num_elements: int) -> None:
    """Add a BF16 row to FP32 sums."""
    row = carray(as_pointer(row_addr), (num_elements,), np.uint16)
    for index in range(num_elements):
        sums[index] += as_float(np.uint32(row[index]) << np.uint32(16))


@inner
def add_weighted_row(sums: Any, row_addr: int, weight: float, num_elements: int) -> None:
    """Add weight times a BF16 row to FP32 sums by fma."""
    row = carray(as_pointer(row_addr), (num_elements,), np.uint16)
    for index in range(num_elements):
        sums[index] = fma(weight, as_float(np.uint32(row[index]) << np.uint32(16)), sums[index])


@inner
def store_bf16(out_addr: int, sums: Any, num_elements: int) -> None:
    """Round FP32 sums to a BF16 row."""
    row = carray(as_pointer(out_addr), (num_elements,), np.uint16)
    for index in range(num_elements):
        row[index] = to_bf16(sums[index])


@inner
def i32_at(address: int, count: int) -> Any:
    """Return `count` int32 at an address as an array."""
    return carray(as_pointer(address), (count,), np.int32)


@inner
def distinct_ranks(topk: TopkRow, ranks_addr: int) -> int:
    """Write a token's distinct ranks in ascending order to int32 `ranks`; return their number."""
    idx = i32_at(topk.idx_addr, topk.num_topk)
    ranks = i32_at(ranks_addr, topk.num_topk)
    count = 0
    for k in range(topk.num_topk):
        if idx[k] < 0:
            continue
        rank = idx[k] // topk.experts_per_rank
        place = count
        while place > 0 and ranks[place - 1] > rank:
            place -= 1
        if place > 0 and ranks[place - 1] == rank:
            continue
        for index in range(count, place, -1):
            ranks[index] = ranks[index - 1]
        ranks[place] = rank
        count += 1
    return count


@inner
def localize(rank: int, out_idx_addr: int, out_weights_addr: int, topk: TopkRow) -> None:
    """Write a token's expert ids made local to `rank`, and its weights there."""
    idx = i32_at(topk.idx_addr, topk.num_topk)
    weights = i32_at(topk.weights_addr, topk.num_topk)
    out_idx = i32_at(out_idx_addr, topk.num_topk)
    out_weights = i32_at(out_weights_addr, topk.num_topk)
    first = rank * topk.experts_per_rank
    for k in range(topk.num_topk):
        owned = first <= idx[k] < first + topk.experts_per_rank
        out_idx[k] = idx[k] - first if owned else -1
        out_weights[k] = weights[k] if owned else 0


@inner
def count_ranks(topk: TopkRow, num_tokens: int, counts_addr: int, ranks_addr: int) -> None:
    """Count as the instruction does; `ranks_addr` is room for int32 `ranks[num_topk]`."""
    counts = i32_at(counts_addr, topk.world_size)
    counts[:] = 0
    ranks = i32_at(ranks_addr, topk.num_topk)
    for token in range(num_tokens):
        row = TopkRow(
            topk.idx_addr + 4 * topk.num_topk * token,
            0,
            topk.num_topk,
            topk.experts_per_rank,
            topk.world_size,
        )
        for index in range(distinct_ranks(row, ranks_addr)):
            counts[ranks[index]] += 1


@inner
def rank_mask(topk: TopkRow, first_rank: int, num_ranks: int) -> int:
    """Mark ranks as the instruction does."""
    idx = i32_at(topk.idx_addr, topk.num_topk)
    mask = 0
    for k in range(topk.num_topk):
        place = idx[k] // topk.experts_per_rank - first_rank
        if idx[k] >= 0 and 0 <= place < num_ranks:
            mask |= 1 << place
    return mask


@inner
def select_rank(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
    """List selections as the instruction does."""
    total = num_tokens * topk.num_topk
    idx = i32_at(topk.idx_addr, total)
    weights = i32_at(topk.weights_addr, total)
    entries = i32_at(selected.entries_addr, 4 * total)
    counts = i32_at(selected.counts_addr, topk.experts_per_rank)
    counts[:] = 0
    first = rank * topk.experts_per_rank
    count = 0
    for index in range(total):
        local = idx[index] - first
        if idx[index] >= 0 and 0 <= local < topk.experts_per_rank:
            entries[4 * count] = index
            entries[4 * count + 1] = weights[index]
            entries[4 * count + 2] = local
            entries[4 * count + 3] = counts[local]
            counts[local] += 1
            count += 1
    return count


@inner
def count_experts(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    """Count as the instruction does."""
    counts = i32_at(counts_addr, topk.world_size * topk.experts_per_rank)
    counts[:] = 0
    idx = i32_at(topk.idx_addr, num_tokens * topk.num_topk)
    for index in range(num_tokens * topk.num_topk):
        if idx[index] >= 0:
            counts[idx[index]] += 1


@inner
def sum_rows(matrix: Matrix, num_rows: int, initial_addr: int, sums_addr: int) -> None:
    """Add as the instruction does."""
    columns = matrix.num_columns
    sums = i32_at(sums_addr, columns)
    if initial_addr == 0:
        sums[:] = 0
    else:
        initial = i32_at(initial_addr, columns)
        for column in range(columns):
            sums[column] = initial[column]
    for index in range(num_rows):
        row = i32_at(matrix.addr + index * matrix.row_bytes, columns)
        for column in range(columns):
            sums[column] += row[column]


@inner
def route(topk: TopkRow, cursor_addr: int, ranks_addr: int, rows_addr: int) -> int:
    """Route as the instruction does."""
    count = distinct_ranks(topk, ranks_addr)
    ranks = i32_at(ranks_addr, topk.num_topk)
    rows = i32_at(rows_addr, topk.num_topk)
    cursor = i32_at(cursor_addr, topk.world_size)
    for index in range(count):
        rows[index] = cursor[ranks[index]]
        cursor[ranks[index]] += 1
    return count


@inner
def route_experts(topk: TopkRow, cursor_addr: int, lists: ExpertLists) -> int:
    """Route as the instruction does."""
    idx = i32_at(topk.idx_addr, topk.num_topk)
    weights = i32_at(topk.weights_addr, topk.num_topk)
    experts = i32_at(lists.experts_addr, topk.num_topk)
    rows = i32_at(lists.rows_addr, topk.num_topk)
    out_weights = i32_at(lists.weights_addr, topk.num_topk)
    cursor = i32_at(cursor_addr, topk.world_size * topk.experts_per_rank)
    count = 0
    for k in range(topk.num_topk):
        if idx[k] >= 0:
            experts[count], out_weights[count] = idx[k], weights[k]
            rows[count] = cursor[idx[k]]
            cursor[idx[k]] += 1
            count += 1
    return count


@inner
def scan(counts_addr: int, num_counts: int, begins_addr: int) -> None:
    """Sum as the instruction does."""
    counts = i32_at(counts_addr, num_counts)
    begins = i32_at(begins_addr, num_counts + 1)
    total = 0
    for index in range(num_counts):
        count = counts[index]
        begins[index] = total
        total += count
    begins[num_counts] = total


@inner
def scan_words(address: int, num_words: int, begins_addr: int) -> None:
    """Sum as the instruction does."""
    counts = i32_at(address, 2 * num_words)
    begins = i32_at(begins_addr, num_words + 1)
    total = 0
    for index in range(num_words):
        begins[index] = total
        total += counts[2 * index]
    begins[num_words] = total
