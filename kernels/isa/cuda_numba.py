"""What numba-cuda has no option for: which GPU it compiles for, and loops as they are written.

Both replace a function of numba-cuda while a kernel is compiled.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comms.cuda.toolchain import capability

_BRANCH = re.compile(r"^  br .*$", re.MULTILINE)
_NODE = re.compile(r"^!(\d+) =", re.MULTILINE)


@contextmanager
def compiling_for(arch: str) -> Iterator[None]:
    """Let numba-cuda compile for an architecture, on a machine without a GPU too."""
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    class StandIn:
        compute_capability = capability(arch)

    def compile_rolled(modules: str | list[str], **options: Any) -> Any:
        modules = [modules] if isinstance(modules, str) else modules
        return compile_ir(list(map(rolled, modules)), **options)

    get_current_device, compile_ir = dispatcher.get_current_device, nvvm.compile_ir
    # Device functions ask for the current device.
    dispatcher.get_current_device, nvvm.compile_ir = StandIn, compile_rolled
    try:
        yield
    finally:
        dispatcher.get_current_device, nvvm.compile_ir = get_current_device, compile_ir


def rolled(module: str) -> str:
    """Return LLVM IR whose loops are not unrolled.

    A kernel's loops wait, move rows or look up a few words: copies of their bodies, as LLVM makes
    where the number of rounds is unknown, only take room. Loops that move the bytes of a row are
    those of `cuh/rows.cuh`. The wish stands at the branches that end a loop's rounds; at others it
    means nothing.
    """
    first = 1 + max((int(number) for number in _NODE.findall(module)), default=-1)
    num_branches = 0

    def marked(match: re.Match[str]) -> str:
        nonlocal num_branches
        num_branches += 1
        return f"{match[0]}, !llvm.loop !{first + num_branches}"

    module = _BRANCH.sub(marked, module)
    nodes = [f'!{first} = !{{ !"llvm.loop.unroll.disable" }}']
    # Each loop needs a node of its own, which names itself.
    for node in range(first + 1, first + 1 + num_branches):
        nodes.append(f"!{node} = distinct !{{ !{node}, !{first} }}")
    return "\n".join((module, *nodes, ""))
