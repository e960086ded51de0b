"""The harness's own kernels on GPUs: ranks meet before an operation, and the clock is read."""

from __future__ import annotations

from pathlib import Path

from comms.cuda.cubins import LANES, Cubin, kept
from comms.cuda.toolchain import compile_cxx, link

_ISA = Path(__file__).resolve().parent
_ENTRIES = {"_meet": "epbench_meet", "_stamp": "epbench_stamp"}


def compile_meeting(arch: str, *, is_virtual: bool) -> dict[str, Cubin]:
    """Return the kernels `_meet` and `_stamp` of `cuh/meet.cu`, each in a file of its own.

    Raises:
        RuntimeFailure: a compiler is missing or refuses them.
    """
    return {name: _compile(name, entry, arch, is_virtual) for name, entry in _ENTRIES.items()}


def _compile(name: str, entry: str, arch: str, is_virtual: bool) -> Cubin:
    def build() -> Cubin:
        text = "#define EP_VIRTUAL\n" if is_virtual else ""
        source = f'{text}#include "cuh/meet.cu"\n'
        part = compile_cxx(source, arch=arch, include=_ISA, name="meet.cu")
        code = link([part], arch=arch, name=name)
        return Cubin(
            name=name,
            arch=arch,
            code=code,
            entry=entry,
            num_threads=LANES,
            shared_bytes=0,
        )

    return kept([], (name, arch, is_virtual), build)
