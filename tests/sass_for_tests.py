"""Machine code that tests read: stored texts, and compilers where they are installed."""

from importlib import metadata
from pathlib import Path

import pytest

from bench.asm.flow import find_loops
from bench.asm.rows import BulkLoop, LdstLoop, find_bulk_loop, find_ldst_loops
from bench.asm.sass import Instruction, read_instructions

FOLDER = Path(__file__).parent / "sass"
NEEDED = ("numba-cuda", "cuda-core", "nvidia-cuda-nvdisasm", "nvidia-cuda-cuobjdump")


def stored() -> dict[str, tuple[Instruction, ...]]:
    """Return the kernels of `sass/kernels.cu` for sm_90."""
    return read_instructions((FOLDER / "sm_90.json").read_text())


def code_of(text: str) -> tuple[Instruction, ...]:
    """Return the instructions of a listing: predicate, opcode and operands on each line."""
    code = []
    for place, line in enumerate(text.strip().splitlines()):
        words = line.split()
        predicate = words.pop(0) if words[0].startswith("@") else None
        operands = tuple("".join(words[1:]).split(",")) if words[1:] else ()
        code.append(Instruction(16 * place, words[0], operands, predicate))
    return tuple(code)


def ldst(code: tuple[Instruction, ...]) -> list[LdstLoop]:
    """Return the loops of a function that move rows by loads and stores."""
    return find_ldst_loops(find_loops(code))


def bulk(code: tuple[Instruction, ...]) -> BulkLoop | None:
    """Return the loop of a function that moves rows by bulk copies."""
    return find_bulk_loop(find_loops(code), code)


def compiles() -> pytest.MarkDecorator:
    """Skip a test where the packages that compile for GPUs are missing."""
    missing = []
    for name in NEEDED:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    told = f"not installed: {', '.join(missing)} (pip install -e '.[cuda-compile]')"
    return pytest.mark.skipif(bool(missing), reason=told)


def cubin(arch: str = "sm_90") -> bytes:
    """Compile `sass/kernels.cu`."""
    from cuda.core import Program, ProgramOptions

    source = (FOLDER / "kernels.cu").read_text()
    return bytes(Program(source, "c++", ProgramOptions(arch=arch)).compile("cubin").code)
