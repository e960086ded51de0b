"""Memory by address, for compiled code: words, records and bytes at integer addresses."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from comms.compiling import inner


@intrinsic
def as_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """Cast an integer address to a pointer."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


@intrinsic
def move(typingctx, dst, src, num_bytes):  # type: ignore[no-untyped-def]
    """`move(dst, src, num_bytes)`: copy bytes between addresses that do not overlap."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(64)
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, word])
        dst_pointer, src_pointer = (builder.inttoptr(arg, pointer) for arg in args[:2])
        builder.call(memcpy, [dst_pointer, src_pointer, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def record_at(typingctx, address, dtype):  # type: ignore[no-untyped-def]
    """Return the record of `dtype` at an address, by reference."""
    record = dtype.dtype

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(record))

    return record(types.int64, dtype), codegen


@inner
def word_at(address: int) -> Any:
    """Return the int64 word at `address` as an array of one."""
    return carray(as_pointer(address), (1,), np.int64)
