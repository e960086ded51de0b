"""From launches to what is told of them: compile, read, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from bench.asm import tools
from bench.asm.accesses import count_accesses
from bench.asm.flow import find_loops, in_step
from bench.asm.in_flight import bytes_needed, fabric_of
from bench.asm.occupancy import RESERVED_BYTES, SOURCE, Occupancy, limits_of, occupancy
from bench.asm.report import Examined, KernelReport, NotCompiled, RowLoop
from bench.asm.rows import (
    LANES,
    BulkLoop,
    LdstLoop,
    find_bulk_loop,
    find_ldst_loops,
    loads_in_bulk,
)
from bench.asm.sass import Instruction, read_instructions, read_resources
from bench.asm.symbols import function_addresses
from comms.errors import EpbenchError, RuntimeFailure

if TYPE_CHECKING:
    from bench.asm.targets import Target
    from comms.cuda.cubins import Cubin
    from comms.fabric import Fabric, Mechanism

Tell = Callable[[str], None]
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to compile.

    Attributes:
        targets: launches of kernels.
        arches: architectures, for example `("sm_90",)`.
        fabric: whose rates and latencies bytes under way are compared with; None for those of each
            architecture.
        keep_going: whether a launch that does not compile is told beside the others.
    """

    targets: Sequence[Target]
    arches: tuple[str, ...]
    fabric: Fabric | None = None
    keep_going: bool = False


def examine(asked: Asked, tell: Tell = lambda _: None) -> Examined:
    """Compile launches and return what became of them.

    Args:
        asked: what to compile.
        tell: is told what is compiled next.

    Raises:
        EpbenchError: an unknown architecture, a missing package, or a kernel that does not compile
            where `keep_going` is not set.
    """
    for arch in asked.arches:
        limits_of(arch)
    tools.check_packages()
    kernels: list[KernelReport] = []
    skipped: list[NotCompiled] = []
    num_all = len(asked.arches) * len(asked.targets)
    for arch in asked.arches:
        fabric = asked.fabric or fabric_of(arch)
        for target in asked.targets:
            place = len(kernels) + len(skipped) + 1
            tell(f"[{place}/{num_all}] {target.kernel} {target.launch.name} {arch}")
            try:
                cubin = compile_target(target, arch)
                kernels.append(report_of(target, cubin, fabric))
            except EpbenchError as error:
                if not asked.keep_going:
                    raise
                told = (target.kernel, target.impl, target.op, target.launch.name, arch)
                skipped.append(NotCompiled(*told, str(error)))
    if asked.targets and not kernels:
        raise RuntimeFailure(f"nothing was compiled: {skipped[0].reason}")
    return Examined(limits=SOURCE, kernels=kernels, skipped=skipped)


def compile_target(target: Target, arch: str) -> Cubin:
    """Compile a launch as it runs with a rank of its own on each GPU."""
    from kernels.isa.cuda_kernel import compile_kernel

    return compile_kernel(target.launch, target.num_warps, arch=arch)


def texts(asked: Asked, form: Literal["ptx", "sass"]) -> Iterator[tuple[str, str]]:
    """Yield a title and the text of each launch.

    Args:
        asked: what to compile.
        form: PTX after linking, or machine code.

    Raises:
        EpbenchError: as `examine`.
    """
    for arch in asked.arches:
        limits_of(arch)
    tools.check_packages()
    for arch in asked.arches:
        for target in asked.targets:
            title = f"{target.kernel} {target.launch.name} {target.impl} {arch}"
            if form == "ptx":
                from kernels.isa.cuda_kernel import ptx_of

                yield title, ptx_of(target.launch, target.num_warps, arch=arch)
            else:
                yield title, tools.listing(compile_target(target, arch).code)


def report_of(target: Target, cubin: Cubin, fabric: Fabric | None) -> KernelReport:
    """Return what is told of a compiled launch."""
    addresses = function_addresses(cubin.code)
    functions = read_instructions(tools.instructions_text(cubin.code), addresses)
    everything = _of(functions, cubin.entry)
    code = in_step(everything)
    used = _of(read_resources(tools.resources_text(cubin.code)), cubin.entry)
    limits = limits_of(cubin.arch)
    # What the system takes is reported with static memory, and not at all where there is none.
    reserved = RESERVED_BYTES if limits.reports_reserved else 0
    static = max(0, used.shared_bytes - reserved)
    shared = static + cubin.shared_bytes
    held = occupancy(
        limits, num_threads=LANES * target.num_warps, registers=used.registers, shared_bytes=shared
    )
    counted = count_accesses(code)
    loops = _row_loops(target, everything, held, cubin.shared_bytes or static, fabric)
    main = loops[0] if loops else None
    return KernelReport(
        kernel=target.kernel,
        impl=target.impl,
        op=target.op,
        launch=target.launch.name,
        arch=cubin.arch,
        num_warps=target.num_warps,
        registers=used.registers,
        spill_bytes=used.stack_bytes + used.local_bytes,
        static_shared_bytes=static,
        dynamic_shared_bytes=cubin.shared_bytes,
        shared_bytes=shared,
        blocks_per_sm=held.blocks,
        warps_per_sm=held.warps,
        bound_by=held.bound_by,
        num_instructions=sum(each.name != "NOP" for each in everything),
        widths={
            kind: {str(bits): number for bits, number in found.items()}
            for kind, found in counted.widths.items()
        },
        share_128=counted.share_128,
        num_read_only=counted.num_read_only,
        fences=counted.fences,
        strong=counted.strong,
        bulk=counted.bulk,
        mbarriers=counted.mbarriers,
        barriers=counted.barriers,
        mechanism=main.mechanism if main else None,
        instructions_per_16b=main.instructions_per_16b if main else None,
        bytes_in_flight=main.bytes_in_flight if main else None,
        bytes_needed=main.bytes_needed if main else None,
        loops=loops,
        compile_s=cubin.compile_s,
        was_cached=cubin.was_cached,
    )


def _row_loops(
    target: Target,
    code: Sequence[Instruction],
    held: Occupancy,
    stages_bytes: int,
    fabric: Fabric | None,
) -> list[RowLoop]:
    """Return the loops that move rows, `bulk` first where it fills shared memory.

    A launch has one block on each SM, so what an SM has under way is its block's.
    """
    loops = find_loops(code)
    found: list[RowLoop] = []
    bulk = find_bulk_loop(loops, code) if any(map(loads_in_bulk, code)) else None
    if bulk is not None:
        under_way = stages_bytes if held.blocks else 0
        found.append(_row_loop("bulk", bulk, under_way, target, fabric))
    for loop in find_ldst_loops(loops, has_bulk=bulk is not None):
        under_way = loop.lane_bytes_in_flight * LANES * target.num_warps if held.blocks else 0
        found.append(_row_loop("ldst", loop, under_way, target, fabric))
    return found


def _row_loop(
    mechanism: Mechanism,
    loop: LdstLoop | BulkLoop,
    bytes_in_flight: int,
    target: Target,
    fabric: Fabric | None,
) -> RowLoop:
    needed = None
    if fabric is not None:
        num_sms = target.num_sms or fabric.num_sms
        needed = bytes_needed(fabric, mechanism, num_sms, pulls=target.pulls)
    return RowLoop(
        mechanism=mechanism,
        moves=loop.moves,
        num_instructions=loop.num_instructions,
        instructions_per_16b=loop.instructions_per_16b,
        bytes_in_flight=bytes_in_flight,
        bytes_needed=needed.num_bytes if needed else None,
        rate_gbs=needed.rate_gbs if needed else None,
        latency_ns=needed.latency_ns if needed else None,
    )


def _of(functions: Mapping[str, Told], entry: str) -> Told:
    """Return what is told of the kernel."""
    if entry not in functions:
        raise RuntimeFailure(
            f"the tools tell of {', '.join(functions) or 'no function'}, not {entry}"
        )
    return functions[entry]
