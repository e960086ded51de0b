"""Atomic words of shared memory, fences, the clock and yielding, for compiled code on CPUs.

All act on int64 words at naturally aligned addresses, between the threads of all processes that
map them.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from comms.compiling import inner

_WORD = ir.IntType(64)


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, _WORD.as_pointer())


def _load(order: str) -> Any:
    def typed(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.load_atomic(_pointer(builder, args[0]), order, 8)

        return types.int64(types.int64), codegen

    typed.__name__ = f"load_{order}"
    return intrinsic(typed)


def _store(order: str) -> Any:
    def typed(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            builder.store_atomic(args[1], _pointer(builder, args[0]), order, 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    typed.__name__ = f"store_{order}"
    return intrinsic(typed)


def _add(order: str) -> Any:
    def typed(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], order)

        return types.int64(types.int64, types.int64), codegen

    typed.__name__ = f"add_{order}"
    return intrinsic(typed)


load_relaxed, load_acquire = _load("monotonic"), _load("acquire")
store_relaxed, store_release = _store("monotonic"), _store("release")
#: Each returns what the word was before.
add_relaxed, add_acq_rel = _add("monotonic"), _add("acq_rel")


@intrinsic
def compare_exchange(typingctx, address, expected, value):  # type: ignore[no-untyped-def]
    """`compare_exchange(address, expected, value)`: set a word if it is `expected`.

    Returns what it was.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pair = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 0)

    return types.int64(types.int64, types.int64, types.int64), codegen


@inner
def claim(address: int, value: int) -> int:
    """Set a word that is 0; return what it was."""
    was: int = compare_exchange(address, 0, value)
    return was


@intrinsic
def fence_release(typingctx):  # type: ignore[no-untyped-def]
    """Order this thread's earlier writes, non-temporal ones too, before its later atomic ones."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        # A release fence of x86 is no instruction; it does not order non-temporal stores.
        builder.fence("release")
        sfence = builder.module.declare_intrinsic(
            "llvm.x86.sse.sfence", fnty=ir.FunctionType(ir.VoidType(), [])
        )
        builder.call(sfence, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_thread(typingctx):  # type: ignore[no-untyped-def]
    """Let the operating system run another thread on this core."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        name = "sched_yield"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.IntType(32), []), name)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def monotonic_ns(typingctx):  # type: ignore[no-untyped-def]
    """Return CLOCK_MONOTONIC in nanoseconds, as `time.monotonic_ns` does."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        timespec = ir.ArrayType(_WORD, 2)
        clock_id = ir.IntType(32)
        name = "clock_gettime"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(
                builder.module,
                ir.FunctionType(clock_id, [clock_id, _WORD.as_pointer()]),
                name,
            )
        now = cgutils.alloca_once(builder, timespec)
        seconds = builder.gep(now, [ir.Constant(clock_id, 0), ir.Constant(clock_id, 0)])
        builder.call(function, [ir.Constant(clock_id, 1), seconds])
        nanoseconds = builder.gep(now, [ir.Constant(clock_id, 0), ir.Constant(clock_id, 1)])
        scaled = builder.mul(builder.load(seconds), ir.Constant(_WORD, 10**9))
        return builder.add(scaled, builder.load(nanoseconds))

    return types.int64(), codegen
