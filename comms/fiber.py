"""Fibers for compiled code: a context switch in assembly, and the stacks it runs on.

A fiber's context block lies at the high end of its stack, on the page that its frames use anyway,
so that compiled code finds it from the stack pointer: no global, no thread-local. Word 0 of a
context holds the saved stack pointer.
"""

import ctypes
import mmap
import platform
from functools import cache

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from comms.compiling import inner
from comms.errors import RuntimeFailure
from comms.raw import word_at

STACK_BYTES = 64 * 1024
#: Bytes of the context block at the high end of each stack.
CONTEXT_BYTES = 128
#: Words of the context block.
CTX_RSP, CTX_ENGINE, CTX_WARP = range(3)

# The System V ABI makes rbx, rbp and r12-r15 the callee's to keep; the rest dies at any call.
# ep_start runs an entry on a new stack: rsp is a multiple of 16 before the call, and the entry
# never returns.
_ASSEMBLY_X86_64 = r"""
.text
.globl ep_switch
ep_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.globl ep_start
ep_start:
  movq %r12, %rdi
  callq *%rbx
  ud2
"""


@cache
def install_switch() -> None:
    """Assemble the context switch and make it known to compiled code as `ep_switch`.

    Raises:
        RuntimeFailure: the processor is not x86-64.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise RuntimeFailure(
            f"fibers need an x86-64 processor, this one is {platform.machine()}; "
            "run epbench on an x86-64 machine"
        )
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    lines = _ASSEMBLY_X86_64.strip().splitlines()
    assembly = "\n".join(f'module asm "{line.strip()}"' for line in lines)
    source = f"""target triple = "{llvm.get_default_triple()}"
{assembly}
declare void @ep_switch(i8*, i8*)
declare void @ep_start()
define i64 @ep_switch_address() {{ ret i64 ptrtoint (void (i8*, i8*)* @ep_switch to i64) }}
define i64 @ep_start_address() {{ ret i64 ptrtoint (void ()* @ep_start to i64) }}
"""
    module = llvm.parse_assembly(source)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    for name in ("ep_switch", "ep_start"):
        getter = ctypes.CFUNCTYPE(ctypes.c_int64)(engine.get_function_address(f"{name}_address"))
        _ADDRESSES[name] = getter()
        llvm.add_symbol(name, _ADDRESSES[name])
    _KEEP.append(engine)


_ADDRESSES: dict[str, int] = {}
_KEEP: list[object] = []


def start_address() -> int:
    """Return the address at which a new fiber's first switch lands."""
    install_switch()
    return _ADDRESSES["ep_start"]


class Stacks:
    """Stacks for `num_fibers` fibers in one reserved mapping; pages are touched on use."""

    def __init__(self, num_fibers: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._map = mmap.mmap(-1, (num_fibers + 1) * STACK_BYTES, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.base = -(-start // STACK_BYTES) * STACK_BYTES
        self.num_fibers = num_fibers
        offset = self.base - start
        words = np.frombuffer(self._map, np.int64, num_fibers * STACK_BYTES // 8, offset)
        self._low_words = words.reshape(num_fibers, STACK_BYTES // 8)[:, :8]

    def overflowed(self) -> list[int]:
        """Return the fibers whose frames have reached the low end of their stacks."""
        return np.flatnonzero(self._low_words.any(axis=1)).tolist()


@intrinsic
def switch(typingctx, save_at, load_from):  # type: ignore[no-untyped-def]
    """`switch(save_at, load_from)`: save this context at one address, load that at another."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, pointer])
        function = builder.module.globals.get("ep_switch")
        if function is None:
            function = ir.Function(builder.module, function_type, "ep_switch")
        builder.call(function, [builder.inttoptr(arg, pointer) for arg in args])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def context_address(typingctx):  # type: ignore[no-untyped-def]
    """`context_address()`: the address of the running fiber's context block."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        stack_pointer = builder.asm(
            ir.FunctionType(word, []), "movq %rsp, $0", "=r", [], side_effect=False
        )
        last = builder.or_(stack_pointer, ir.Constant(word, STACK_BYTES - 1))
        return builder.sub(last, ir.Constant(word, CONTEXT_BYTES - 1))

    return types.int64(), codegen


@inner
def prepare(context: int, engine: int, warp: int, start: int, entry: int, argument: int) -> None:
    """Lay a stack out so that the first switch to its context calls `entry(argument)`.

    Args:
        context: address of the stack's context block.
        engine: what `CTX_ENGINE` shall hold.
        warp: what `CTX_WARP` shall hold.
        start: what `start_address()` returns.
        entry: compiled function of an int64 that never returns.
        argument: its argument.
    """
    # The seven words that ep_switch pops: r15 r14 r13 r12 (argument) rbx (entry) rbp, return
    # address. They end at a multiple of 16, where ep_start begins.
    frame = context - 72
    for index in range(9):
        word_at(frame + 8 * index)[0] = 0
    word_at(frame + 24)[0] = argument
    word_at(frame + 32)[0] = entry
    word_at(frame + 48)[0] = start
    word_at(context + 8 * CTX_RSP)[0] = frame
    word_at(context + 8 * CTX_ENGINE)[0] = engine
    word_at(context + 8 * CTX_WARP)[0] = warp


@inner
def this_engine() -> int:
    """Return what the running fiber was prepared with as `engine`."""
    value: int = word_at(context_address() + 8 * CTX_ENGINE)[0]
    return value


@inner
def this_warp() -> int:
    """Return what the running fiber was prepared with as `warp`."""
    value: int = word_at(context_address() + 8 * CTX_WARP)[0]
    return value
