"""A kernel of CUDA C++ for GPUs: its source as one translation unit, to compile.

The file defines `void function(const Params& p)` in namespace `ep`. `Params` and the entry are
written here from the fields of the launch's named tuple, so that C++ and Python agree. The entry
takes the fields one by one and calls a function that is inlined, so the compiler reads them from
constant memory where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from comms import waits
from comms.cuda.cubins import LANES
from comms.cuda.toolchain import capability
from kernels.protocol import CxxKernel, KernelLaunch

_ISA = Path(__file__).resolve().parent
#: Shared memory of all warps: what a block of Hopper may have less what else it keeps.
_AREAS_BYTES = 216 * 1024
#: Most of a warp for stages: three of 8 KiB, or twelve of 2.
_MOST_STAGES_BYTES = 24576
#: A warp's stages are three of whole lines of 128; barriers and records come after them.
_STAGES_UNIT = 384
_RECORDS_BYTES = 512
#: Least architecture that copies in bulk; others copy by loads and stores.
BULK_FROM = (9, 0)

_SOURCE = """\
{defines}#include "cuda.cuh"

namespace ep {{
struct Params {{
  i64 {fields};
}};
}}  // namespace ep

#line 1 "{file}"
{text}
extern "C" __global__ void __launch_bounds__({num_threads}, 1)
{entry}(ep::i64 stride, ep::i64 num_tokens_addr, {parameters}) {{
  const ep::Params p = {{{arguments}}};
  ep::{function}(p);
}}
"""


#: Headers that wait, by the macro of their tag.
_WAITING = {"EP_STAGES_TAG": "stages", "EP_COPIES_TAG": "copies", "EP_SUMS_TAG": "sums"}


def name_files(cxx: CxxKernel) -> dict[str, int]:
    """Let reports name the files that a kernel waits in; return their tags by macro."""
    files = {macro: _ISA / "cuh" / f"{name}.cuh" for macro, name in _WAITING.items()}
    files["EP_KERNEL_TAG"] = cxx.file
    return {
        macro: waits.name_file(f"{file.parent.name}/{file.name}", str(file))
        for macro, file in files.items()
    }


def area_bytes(num_warps: int, arch: str) -> int:
    """Return the shared memory that each warp of a block has, none without bulk copies."""
    if capability(arch) < BULK_FROM:
        return 0
    share = (_AREAS_BYTES // num_warps - _RECORDS_BYTES) // _STAGES_UNIT * _STAGES_UNIT
    return min(share, _MOST_STAGES_BYTES) + _RECORDS_BYTES


def cxx_source(
    launch: KernelLaunch, num_warps: int, *, arch: str, entry: str, is_virtual: bool
) -> str:
    """Return the translation unit of a launch.

    Args:
        launch: kernel and parameters; it has a C++ one.
        num_warps: warps of a block.
        arch: for example `sm_90`.
        entry: name of the kernel.
        is_virtual: whether `blockIdx.y` is one of several ranks on this GPU.
    """
    assert launch.cxx is not None
    macros: dict[str, int | None] = {
        "EP_NUM_WARPS": num_warps,
        "EP_AREA_BYTES": area_bytes(num_warps, arch),
        "EP_GROUPS": None,
        **name_files(launch.cxx),
    }
    if is_virtual:
        macros["EP_VIRTUAL"] = None
    fields = launch.params._fields
    return _SOURCE.format(
        defines="".join(
            f"#define {name}{'' if value is None else f' {value}'}\n"
            for name, value in macros.items()
        ),
        fields=", ".join(fields),
        file=f"{launch.cxx.file.parent.name}/{launch.cxx.file.name}",
        text=launch.cxx.file.read_text(),
        num_threads=LANES * num_warps,
        entry=entry,
        parameters=", ".join(f"ep::i64 {field}" for field in fields),
        arguments=", ".join(argument(field, is_virtual) for field in fields),
        function=launch.cxx.function,
    )


def argument(field: str, is_virtual: bool, read: Callable[[str], str] = str) -> str:
    """Return what a parameter is for a virtual rank: of those on a GPU only these differ.

    Args:
        field: its name.
        is_virtual: whether there are virtual ranks.
        read: returns how the entry's parameter of a name is read; by the name itself as default.
    """
    value = read(field)
    if not is_virtual:
        return value
    if field == "rank":
        return f"{value} + ep::virtual_rank()"
    if field == "num_tokens":
        return f"ep::load_i64({read('num_tokens_addr')} + 8 * ep::virtual_rank())"
    return f"{value} + ep::virtual_rank() * {read('stride')}" if field.endswith("_addr") else value
