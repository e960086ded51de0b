"""What is told of one compiled launch, as it is written to JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from comms.fabric import Mechanism


class RowLoop(msgspec.Struct, frozen=True, kw_only=True):
    """The loop that moves rows by one mechanism (`bench.asm.rows`).

    Attributes:
        mechanism: `ldst` or `bulk`.
        moves: whether rows are copied, or several become one.
        num_instructions: of the loop.
        instructions_per_16b: instructions that a warp issues for 512 bytes, 16 of each lane; None
            where the code does not say how many bytes a pass moves.
        bytes_in_flight: what an SM has under way where every warp of its block is in the loop:
            `ldst`: the most that a lane has asked for and not used, of all lanes; `bulk`: the
            stages in shared memory. 0 where no block fits.
        bytes_needed: what Little's law asks for (`bench.asm.in_flight`); None where the
            architecture has no fabric.
        rate_gbs: rate that it asks for.
        latency_ns: latency that it asks for.
    """

    mechanism: Mechanism
    moves: Literal["copies", "sums"]
    num_instructions: int
    instructions_per_16b: float | None
    bytes_in_flight: int
    bytes_needed: int | None
    rate_gbs: float | None
    latency_ns: float | None


class KernelReport(msgspec.Struct, frozen=True, kw_only=True):
    """One launch of a kernel, compiled for one architecture.

    Instructions are counted in the code, each once; but for `num_instructions` without the copies
    of code that are for warps whose lanes are not in step.

    Attributes:
        kernel: kernel and variant as `epbench run` takes them, with the file of one's own.
        launch: phase that its time is recorded as.
        num_warps: of a block.
        registers: of a thread.
        spill_bytes: local memory of a thread: spilled registers, and arrays on the stack.
        shared_bytes: of a block, static and dynamic.
        blocks_per_sm: blocks that an SM holds at once.
        warps_per_sm: their warps.
        bound_by: what admits no more blocks.
        num_instructions: all of the kernel, without NOPs.
        widths: accesses by kind and bits of a lane: `{"LDG": {"128": 16}}`.
        share_128: share of 128 bits and more among loads and stores of global memory that are not
            flags; None where there are none.
        num_read_only: loads through the read-only path (`.nc`), which need not see what others
            write while the kernel runs.
        fences: instructions that order memory, by opcode.
        strong: accesses that others see at once, by opcode and scope.
        bulk: instructions of the bulk copy engine, by opcode.
        mbarriers: instructions of barriers in shared memory, by opcode.
        barriers: instructions that wait for warps or lanes, by opcode.
        mechanism: what moves rows: `bulk` where the kernel fills shared memory by bulk copies,
            else `ldst`; None where no loop moves rows.
        instructions_per_16b: of the first of `loops`.
        bytes_in_flight: of the first of `loops`.
        bytes_needed: of the first of `loops`.
        loops: the loops that move rows, at most one for each mechanism and kind: those of
            `mechanism` first, and that with most accesses.
        compile_s: time to compile and link it, of when it was compiled if it was kept.
        was_cached: whether it was kept from before.
    """

    kernel: str
    impl: Literal["numba", "cupy", "library"]
    op: Literal["dispatch", "combine"]
    launch: str
    arch: str
    num_warps: int
    registers: int
    spill_bytes: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    warps_per_sm: int
    bound_by: str
    num_instructions: int
    widths: dict[str, dict[str, int]]
    share_128: float | None
    num_read_only: int
    fences: dict[str, int]
    strong: dict[str, int]
    bulk: dict[str, int]
    mbarriers: dict[str, int]
    barriers: dict[str, int]
    mechanism: Mechanism | None
    instructions_per_16b: float | None
    bytes_in_flight: int | None
    bytes_needed: int | None
    loops: list[RowLoop]
    compile_s: float
    was_cached: bool


class NotCompiled(msgspec.Struct, frozen=True):
    """A launch that could not be compiled, and why."""

    kernel: str
    impl: str
    op: str
    launch: str
    arch: str
    reason: str


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """All that was asked for.

    Attributes:
        limits: where the limits of SMs are from.
        kernels: in the order asked for, architecture by architecture.
        skipped: what could not be compiled.
    """

    limits: str
    kernels: list[KernelReport]
    skipped: list[NotCompiled]
