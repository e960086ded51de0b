"""Row copies and reductions of CPUs: explicit vectors, stores that pass the cache by.

A row that has been written is not read again by its writer, and a cached store would first read
the line it replaces: non-temporal stores move a third less. They need an `sfence` before a release
(`comms.atomics.fence_release`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from comms.compiling import inner
from comms.raw import word_at

_I16, _I32, _FLOAT, _WORD = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.IntType(64)
#: Bytes of a vector: AVX2's, and what rows are aligned to.
VECTOR_BYTES = 32
#: Bytes that one step moves, so that loads are under way while others are stored.
STEP_BYTES = 128


def _vector_at(builder: ir.IRBuilder, address: ir.Value, offset: int, vector: ir.Type) -> ir.Value:
    place = builder.add(address, ir.Constant(_WORD, offset))
    return builder.inttoptr(place, vector.as_pointer())


def _stream(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, align: int) -> None:
    store = builder.store(value, pointer, align=align)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


def _copier(vector_bytes: int, num_vectors: int) -> Any:
    vector = ir.VectorType(_I32, vector_bytes // 4)

    def typed(typingctx, dst, src):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            offsets = [vector_bytes * index for index in range(num_vectors)]
            values = [
                builder.load(_vector_at(builder, args[1], offset, vector), align=16)
                for offset in offsets
            ]
            for offset, value in zip(offsets, values, strict=True):
                _stream(builder, value, _vector_at(builder, args[0], offset, vector), vector_bytes)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    typed.__name__ = f"copy_{num_vectors}x{vector_bytes}"
    return intrinsic(typed)


_copy_step = _copier(VECTOR_BYTES, STEP_BYTES // VECTOR_BYTES)
_copy_16 = _copier(16, 1)


@inner
def copy_stream(dst: int, src: int, num_bytes: int) -> None:
    """Copy a multiple of 16 bytes between addresses that are multiples of 16."""
    at = 0
    if dst % VECTOR_BYTES == 16 and num_bytes > 0:
        _copy_16(dst, src)
        at = 16
    while at + STEP_BYTES <= num_bytes:
        _copy_step(dst + at, src + at)
        at += STEP_BYTES
    while at < num_bytes:
        _copy_16(dst + at, src + at)
        at += 16


def _round(builder: ir.IRBuilder, total: ir.Value, lanes: int) -> ir.Value:
    """Round FP32 lanes to BF16, to nearest even; any NaN becomes 0x7FFF."""
    wide = ir.VectorType(_I32, lanes)

    def splat(value: int) -> ir.Constant:
        return ir.Constant(wide, [value] * lanes)

    bits = builder.bitcast(total, wide)
    odd = builder.and_(builder.lshr(bits, splat(16)), splat(1))
    rounded = builder.lshr(builder.add(builder.add(bits, splat(0x7FFF)), odd), splat(16))
    is_nan = builder.fcmp_unordered("uno", total, total)
    chosen = builder.select(is_nan, splat(0x7FFF), rounded)
    return builder.trunc(chosen, ir.VectorType(_I16, lanes))


def _load_bf16(builder: ir.IRBuilder, address: ir.Value, lanes: int, num: int) -> list[ir.Value]:
    """Load `num` vectors of `lanes` BF16 elements as FP32."""
    wide = ir.VectorType(_I32, lanes)
    sixteen = ir.Constant(wide, [16] * lanes)
    values = []
    for index in range(num):
        pointer = _vector_at(builder, address, 2 * lanes * index, ir.VectorType(_I16, lanes))
        bits = builder.shl(builder.zext(builder.load(pointer, align=16), wide), sixteen)
        values.append(builder.bitcast(bits, ir.VectorType(_FLOAT, lanes)))
    return values


def _splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    empty = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _reducer(lanes: int, num_vectors: int, *, is_weighted: bool) -> Any:
    """Make `reduce(out, rows, num_rows, weights, at)` of `lanes * num_vectors` elements.

    `rows` is the address of `num_rows` > 0 addresses of rows, `weights` that of their FP32 weights,
    `at` the bytes from the start of each row.
    """
    vector = ir.VectorType(_FLOAT, lanes)

    def typed(typingctx, out, rows, num_rows, weights, at):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            out, rows, num_rows, weights, at = args
            zero, one = ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32"
            )

            def load_row(index: ir.Value) -> list[ir.Value]:
                place = builder.add(rows, builder.mul(index, ir.Constant(_WORD, 8)))
                start = builder.load(builder.inttoptr(place, _WORD.as_pointer()))
                return _load_bf16(builder, builder.add(start, at), lanes, num_vectors)

            def weight_of(index: ir.Value) -> ir.Value:
                place = builder.add(weights, builder.mul(index, ir.Constant(_WORD, 4)))
                scalar = builder.load(builder.inttoptr(place, _FLOAT.as_pointer()))
                return _splat(builder, scalar, lanes)

            first = load_row(zero)
            if is_weighted:
                weight = weight_of(zero)
                first = [builder.fmul(weight, value) for value in first]
            entry = builder.block
            loop = builder.append_basic_block("rows")
            after = builder.append_basic_block("rounded")
            builder.cbranch(builder.icmp_signed("<", one, num_rows), loop, after)

            builder.position_at_end(loop)
            index = builder.phi(_WORD)
            sums = [builder.phi(vector) for _ in first]
            values = load_row(index)
            if is_weighted:
                weight = weight_of(index)
                totals = [
                    builder.call(fma, [weight, value, total])
                    for value, total in zip(values, sums, strict=True)
                ]
            else:
                totals = [
                    builder.fadd(total, value) for value, total in zip(values, sums, strict=True)
                ]
            following = builder.add(index, one)
            builder.cbranch(builder.icmp_signed("<", following, num_rows), loop, after)
            for phi, start, further in zip(
                [index, *sums], [one, *first], [following, *totals], strict=True
            ):
                phi.add_incoming(start, entry)
                phi.add_incoming(further, loop)

            builder.position_at_end(after)
            results = [builder.phi(vector) for _ in first]
            for phi, start, total in zip(results, first, totals, strict=True):
                phi.add_incoming(start, entry)
                phi.add_incoming(total, loop)
            place = builder.add(out, at)
            for number, result in enumerate(results):
                pointer = _vector_at(builder, place, 2 * lanes * number, ir.VectorType(_I16, lanes))
                _stream(builder, _round(builder, result, lanes), pointer, 2 * lanes)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word), codegen

    typed.__name__ = f"reduce_{num_vectors}x{lanes}{'_weighted' if is_weighted else ''}"
    return intrinsic(typed)


_LANES = VECTOR_BYTES // 2
_add_step = _reducer(_LANES, STEP_BYTES // VECTOR_BYTES, is_weighted=False)
_add_16 = _reducer(8, 1, is_weighted=False)
_fma_step = _reducer(_LANES, STEP_BYTES // VECTOR_BYTES, is_weighted=True)
_fma_16 = _reducer(8, 1, is_weighted=True)


@inner
def reduce_stream(out: int, rows: int, num_rows: int, weights: int, num_bytes: int) -> None:
    """Add BF16 rows in FP32, in order, and write the sums rounded to BF16.

    Args:
        out: address of the result, a multiple of 32.
        rows: address of int64 `addresses[num_rows]` of rows, each a multiple of 16.
        num_rows: rows; none gives +0.
        weights: address of float32 `weights[num_rows]`, 0 for none; then the first row is
            multiplied by its weight and the others are added by `fma`.
        num_bytes: bytes of a row, a multiple of 16.
    """
    if num_rows == 0:
        for at in range(0, num_bytes, 8):
            word_at(out + at)[0] = 0
        return
    steps = num_bytes // STEP_BYTES * STEP_BYTES
    if weights == 0:
        for at in range(0, steps, STEP_BYTES):
            _add_step(out, rows, num_rows, weights, at)
        for at in range(steps, num_bytes, 16):
            _add_16(out, rows, num_rows, weights, at)
    else:
        for at in range(0, steps, STEP_BYTES):
            _fma_step(out, rows, num_rows, weights, at)
        for at in range(steps, num_bytes, 16):
            _fma_16(out, rows, num_rows, weights, at)
