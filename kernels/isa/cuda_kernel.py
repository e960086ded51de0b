"""A kernel as machine code of a GPU: bound, compiled, linked with the instructions, and kept.

No GPU is needed. The entry is C++: it takes parameters one by one, so that the compiler finds them
in constant memory, and it bounds the threads of a block, so that registers are not spilled or the
kernel does not compile for so many warps.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import kernels.isa as specification
from comms.cuda.cubins import LANES, Cubin, kept
from comms.cuda.toolchain import capability, compile_cxx, link
from kernels.isa.bind import bind, global_names, instruction, parse
from kernels.isa.compile_errors import telling_compile_errors
from kernels.isa.cuda_numba import compiling_for
from kernels.isa.cxx_kernel import BULK_FROM, area_bytes, argument, cxx_source
from kernels.protocol import KernelLaunch

_ISA = Path(__file__).resolve().parent
#: Stages in shared memory that a warp's bulk copies go through: NUM_STAGES and STAGE_BYTES of
#: `cuh/bulk.cuh`, which are smaller where a block has so many warps that 227 KB do not suffice.
_NUM_STAGES = 2
_STAGE_BYTES = 4096
_MANY_WARPS_STAGE_BYTES = 3072
#: Most warps of a block that have registers for eight loads in flight each; more warps need fewer.
_FEW_WARPS = 24

_ENTRY = """\
#define EP_READS_ANEW
{defines}#include "cuh/exports.cuh"

{accessors}
extern "C" __device__ void ep_run();

extern "C" __global__ void __launch_bounds__({num_threads}, 1)
{name}({parameters}) {{
  ep::begin_block();
  ep_run();
  ep::end_block();
}}
"""
#: The entry's own parameters, before those of the launch.
_ENTRY_PARAMETERS = ("stride", "num_tokens_addr")
# Reads a parameter of the entry, into which everything is inlined that reads one.
_ACCESSOR = """\
extern "C" __device__ i64 ep_param_{field}() {{ return {value}; }}
"""


def compile_kernel(
    launch: KernelLaunch,
    num_warps: int,
    *,
    arch: str = "sm_90",
    is_virtual: bool = False,
    line_info: bool = False,
) -> Cubin:
    """Compile a launch's kernel, or find it compiled.

    Args:
        launch: kernel and parameters.
        num_warps: warps of a block.
        arch: for example `sm_90`.
        is_virtual: whether `blockIdx.y` is one of several ranks on this GPU.
        line_info: whether profilers can name lines of the instructions (`cuh/*.cuh`).

    Raises:
        UsageError: the kernel does not compile.
        RuntimeFailure: a compiler is missing or refuses what it is given.
    """
    whose = [(thing.__module__, thing.__qualname__) for thing in (launch.kernel, launch.params)]
    options = (launch.name, whose, launch.cxx, num_warps, arch, is_virtual, line_info)

    def build() -> Cubin:
        parts = _parts(launch, num_warps, arch, is_virtual, line_info)
        code = link(parts, arch=arch, name=launch.name, line_info=line_info)
        return Cubin(
            name=launch.name,
            arch=arch,
            code=code,
            entry=_entry_name(launch),
            num_threads=LANES * num_warps,
            shared_bytes=num_warps * _warp_bytes(launch, num_warps, arch),
        )

    return kept(_sources(launch), options, build)


def ptx_of(launch: KernelLaunch, num_warps: int, *, arch: str, is_virtual: bool = False) -> str:
    """Return the PTX of a launch's kernel after it was linked and optimised."""
    parts = _parts(launch, num_warps, arch, is_virtual, False)
    return link(parts, arch=arch, name=launch.name, target="ptx").decode().rstrip("\0")


def _parts(
    launch: KernelLaunch, num_warps: int, arch: str, is_virtual: bool, line_info: bool
) -> list[bytes]:
    """Return the kernel and its entry with the instructions, as code for the linker."""
    if launch.cxx is not None:
        name = f"{launch.cxx.file.parent.name}/{launch.cxx.file.name}"
        source = cxx_source(
            launch, num_warps, arch=arch, entry=_entry_name(launch), is_virtual=is_virtual
        )
        return [compile_cxx(source, arch=arch, include=_ISA, name=name, line_info=line_info)]
    source = entry_source(launch, num_warps, _instructions(launch.kernel), is_virtual=is_virtual)
    entry = compile_cxx(
        source, arch=arch, include=_ISA, name=f"{launch.name}.cu", line_info=line_info
    )
    return [_compiled(launch, arch), entry]


def entry_source(
    launch: KernelLaunch, num_warps: int, used: frozenset[str], *, is_virtual: bool
) -> str:
    """Return the C++ of a launch's entry.

    Args:
        launch: kernel and parameters.
        num_warps: warps of a block.
        used: instructions that the kernel may run.
        is_virtual: whether `blockIdx.y` is one of several ranks on this GPU.
    """
    macros = {
        "EP_VIRTUAL": is_virtual,
        "EP_BULK": "copy_row_bulk" in used,
        "EP_GROUPS": "group_sync" in used,
        "EP_MANY_WARPS": num_warps > _FEW_WARPS,
    }
    fields = launch.params._fields
    places = {name: place for place, name in enumerate((*_ENTRY_PARAMETERS, *fields))}

    def read(name: str) -> str:
        return f'EP_PARAM("{_entry_name(launch)}_param_{places[name]}")'

    return _ENTRY.format(
        defines="".join(f"#define {name}\n" for name, defined in macros.items() if defined),
        accessors="".join(
            _ACCESSOR.format(field=field, value=argument(field, is_virtual, read))
            for field in fields
        ),
        num_threads=LANES * num_warps,
        name=_entry_name(launch),
        parameters=", ".join(f"i64 {name}" for name in places),
    )


def _warp_bytes(launch: KernelLaunch, num_warps: int, arch: str) -> int:
    """Return the shared memory that a launch gives each warp for bulk copies."""
    if launch.cxx is not None:
        return area_bytes(num_warps, arch)
    if capability(arch) < BULK_FROM or "copy_row_bulk" not in _instructions(launch.kernel):
        return 0
    return _NUM_STAGES * (_STAGE_BYTES if num_warps <= _FEW_WARPS else _MANY_WARPS_STAGE_BYTES)


def _entry_name(launch: KernelLaunch) -> str:
    return f"epbench_{launch.kernel.__name__}"


def _compiled(launch: KernelLaunch, arch: str) -> bytes:
    """Compile a kernel by numba-cuda to code for the linker: `ep_run` of its parameters.

    Without lines: numba-cuda flags its debugging data in another way than NVRTC, which keeps
    nvJitLink from linking, and once that is mended the lines are lost.
    """
    from numba import cuda, types

    from kernels.isa import cuda as device
    from kernels.isa.cuda_params import params_of

    path = Path(inspect.getsourcefile(launch.kernel) or "")
    text = "def ep_run():\n    run(params())\n"
    with compiling_for(arch), telling_compile_errors(launch.kernel, path, 2):
        namespace: dict[str, Any] = {
            "run": bind(launch.kernel, device, _device_function),
            "params": params_of(launch.params),
        }
        exec(compile(text, str(path), "exec"), namespace)
        code, _ = cuda.compile(
            namespace["ep_run"],
            types.void(),
            device=True,
            abi="c",
            abi_info={"abi_name": "ep_run"},
            cc=capability(arch),
            output="ltoir",
        )
    return bytes(code)


def _device_function(function: FunctionType) -> Any:
    from numba import cuda

    return cuda.jit(device=True, forceinline=True)(function)


def _instructions(kernel: Callable[..., Any]) -> frozenset[str]:
    """Return the instructions that a kernel and its helpers call."""
    used: set[str] = set()
    todo, seen = [kernel], set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        definition, _ = parse(function)
        used.update(name for node in ast.walk(definition) if (name := instruction(node)))
        assert isinstance(function, FunctionType), f"{function} is not a plain function"
        for name in global_names(function):
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType) and value.__module__ != specification.__name__:
                todo.append(value)
    return frozenset(used)


def _sources(launch: KernelLaunch) -> list[Path]:
    return [
        Path(file)
        for file in (inspect.getsourcefile(launch.kernel), inspect.getsourcefile(launch.params))
        if file
    ]
