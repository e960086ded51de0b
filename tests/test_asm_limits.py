"""What an SM holds, and what it must have under way."""

import itertools
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from bench.asm.in_flight import bytes_needed, fabric_of
from bench.asm.occupancy import LIMITS, RESERVED_BYTES, limits_of, occupancy
from comms.errors import UsageError
from comms.fabric import load_fabric


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "blocks", "bound_by"),
    [
        (1024, 32, 0, 2, "warps"),
        (1024, 64, 0, 1, "registers"),
        (1024, 65, 0, 0, "registers"),
        (512, 128, 0, 1, "registers"),
        (512, 64, 0, 2, "registers"),
        (32, 16, 0, 32, "blocks"),
        (256, 32, 100 * 1024, 2, "shared memory"),
        (256, 32, 227 * 1024, 1, "shared memory"),
        (256, 32, 227 * 1024 + 1, 0, "shared memory"),
    ],
)
def test_blocks_of_an_sm(
    threads: int, registers: int, shared_bytes: int, blocks: int, bound_by: str
) -> None:
    held = occupancy(
        limits_of("sm_90"), num_threads=threads, registers=registers, shared_bytes=shared_bytes
    )
    assert (held.blocks, held.bound_by) == (blocks, bound_by)
    assert held.warps == blocks * threads // 32


def test_architectures_differ() -> None:
    def blocks(arch: str, shared_bytes: int) -> int:
        limits = limits_of(arch)
        return occupancy(limits, num_threads=256, registers=32, shared_bytes=shared_bytes).blocks

    assert [blocks(arch, 80 * 1024) for arch in ("sm_80", "sm_86", "sm_90")] == [2, 1, 2]
    assert [blocks(arch, 200 * 1024) for arch in ("sm_80", "sm_86", "sm_90")] == [0, 0, 1]
    assert [blocks(arch, 0) for arch in ("sm_80", "sm_86", "sm_90")] == [8, 6, 8]
    assert limits_of("sm_90a") == limits_of("sm_90")


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="no limits of 'sm_70' are known; choose among sm_80"):
        limits_of("sm_70")


CALCULATOR = """
#include <cstdio>
#include <cstdlib>
#include "cuda_occupancy.h"
int main(int, char** a) {
  int major, minor, warps, shared, block_shared, threads, registers, bytes;
  while (scanf("%d %d %d %d %d %d %d %d", &major, &minor, &warps, &shared, &block_shared, &threads,
               &registers, &bytes) == 8) {
    cudaOccDeviceProp prop = {};
    prop.computeMajor = major, prop.computeMinor = minor, prop.maxThreadsPerBlock = 1024;
    prop.maxThreadsPerMultiprocessor = 32 * warps, prop.warpSize = 32, prop.numSms = 100;
    prop.regsPerBlock = prop.regsPerMultiprocessor = 65536;
    prop.sharedMemPerBlock = 49152, prop.sharedMemPerMultiprocessor = shared;
    prop.sharedMemPerBlockOptin = block_shared, prop.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes func = {};
    func.maxThreadsPerBlock = 1024, func.numRegs = registers;
    func.maxDynamicSharedSizeBytes = block_shared;
    func.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    cudaOccDeviceState state = {};
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result = {};
    int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &prop, &func, &state, threads,
                                                         bytes);
    printf("%d %d\\n", status, result.activeBlocksPerMultiprocessor);
  }
}
"""


def _header() -> Path | None:
    """Return the folder of NVIDIA's calculator, where its package is installed."""
    try:
        files = metadata.distribution("nvidia-cuda-runtime").files or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == "cuda_occupancy.h"]
    return found[0].parent if found else None


def test_nvidias_calculator_says_the_same(tmp_path: Path) -> None:
    header, compiler = _header(), shutil.which("g++")
    if header is None or compiler is None:
        pytest.skip("needs g++ and cuda_occupancy.h of nvidia-cuda-runtime")
    source, binary = tmp_path / "calculator.cc", tmp_path / "calculator"
    source.write_text(CALCULATOR)
    subprocess.run([compiler, f"-I{header}", "-o", str(binary), str(source)], check=True)
    asked, ours = [], []
    for arch, threads, registers, shared_bytes in itertools.product(
        LIMITS, (32, 96, 256, 384, 512, 768, 1024), (16, 32, 40, 64, 72, 96, 128, 168, 255),
        (0, 640, 8192, 49152, 66560, 99 * 1024 - 1024, 131776, 163 * 1024 - 1024, 226 * 1024),
    ):  # fmt: skip
        limits, number = limits_of(arch), int(arch.removeprefix("sm_"))
        if shared_bytes > limits.block_shared_bytes - RESERVED_BYTES:
            continue
        # The calculator counts what the system takes to what a block may have.
        numbers = (number // 10, number % 10, limits.max_warps, limits.shared_bytes,
                   limits.block_shared_bytes, threads, registers, shared_bytes)  # fmt: skip
        asked.append(" ".join(map(str, numbers)))
        held = occupancy(
            limits, num_threads=threads, registers=registers, shared_bytes=shared_bytes
        )
        ours.append(f"0 {held.blocks}")
    done = subprocess.run(
        [str(binary)], input="\n".join(asked), capture_output=True, text=True, check=True
    )
    theirs = done.stdout.splitlines()
    differing = [line for line in zip(asked, ours, theirs, strict=True) if line[1] != line[2]]
    assert not differing[:5], differing[:5]
    assert len(set(theirs)) > 8


def test_littles_law() -> None:
    fabric = load_fabric("h800")
    eight = bytes_needed(fabric, "ldst", 8, pulls=False)
    assert (eight.rate_gbs, eight.latency_ns, eight.num_bytes) == (20.0, 700.0, 14000)
    assert bytes_needed(fabric, "ldst", 16, pulls=False).num_bytes == 7000
    # An SM copies at most 40 GB/s, however few there are.
    assert bytes_needed(fabric, "ldst", 1, pulls=False).num_bytes == 28000
    assert bytes_needed(fabric, "bulk", 8, pulls=False).num_bytes == 20 * 900
    assert bytes_needed(fabric, "ldst", 8, pulls=True).num_bytes == 20 * (700 + 2 * 750)


def test_fabrics_of_architectures() -> None:
    found = {arch: fabric_of(arch) for arch in ("sm_80", "sm_90", "sm_90a", "sm_100", "sm_89")}
    names = {arch: fabric.name if fabric else None for arch, fabric in found.items()}
    assert names == {
        "sm_80": "a800",
        "sm_90": "h800",
        "sm_90a": "h800",
        "sm_100": "b200",
        "sm_89": None,
    }
