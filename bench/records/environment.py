"""What a run file says about the program and the machine, by allow-list.

No host name, no user name and no variable outside `RECORDED_VARIABLES` is read.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from bench.records.record import Environment, Tool
from comms.fabric import FABRICS_DIR

#: Read by pyproject.toml as the version of the distribution.
VERSION = "0.1.0"

#: Packages whose version can change a result.
RECORDED_PACKAGES = (
    *("llvmlite", "ml_dtypes", "mpi4py", "msgspec", "numba", "numpy"),
    *("cupy-cuda12x", "cupy-cuda13x", "cuda-bindings", "cuda-core", "nccl4py", "numba-cuda"),
    *("nvidia-cuda-nvrtc", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-nvjitlink"),
)
#: Variables that change compiled code or its threads.
RECORDED_VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_ALGO",
    "NCCL_CROSS_NIC",
    "NCCL_CUMEM_ENABLE",
    "NCCL_IB_DISABLE",
    "NCCL_IB_HCA",
    "NCCL_NET",
    "NCCL_NET_GDR_LEVEL",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROTO",
    "NCCL_PXN_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "NUMBA_BOUNDSCHECK",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NUMBA_DISABLE_JIT",
    "NUMBA_OPT",
    "OMP_NUM_THREADS",
)

_ROOT = Path(__file__).resolve().parent.parent.parent
_GIT_LIMIT_S = 10
#: What the driver's kernel module tells.
_NVIDIA = Path("/proc/driver/nvidia")


def tool() -> Tool:
    """Return name and version of epbench, with git state where it runs from its clone."""
    if _git("rev-parse", "--show-toplevel") != str(_ROOT):
        return Tool("epbench", VERSION, git_sha=None, git_branch=None, git_dirty=None)
    status = _git("status", "--porcelain", "--untracked-files=no")
    return Tool(
        "epbench",
        VERSION,
        git_sha=_git("rev-parse", "--verify", "HEAD"),
        git_branch=_git("rev-parse", "--abbrev-ref", "HEAD"),
        git_dirty=None if status is None else bool(status),
    )


def environment() -> Environment:
    """Return the recorded part of the machine and of the process environment."""
    return Environment(
        os=platform.system(),
        kernel=platform.release(),
        machine=platform.machine(),
        cpu_model=_cpu_model(),
        num_cpus=os.cpu_count() or 1,
        python=platform.python_version(),
        packages=_versions(),
        env={name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
        gpu_driver=_gpu_driver(),
    )


def machine_id(devices: Sequence[str]) -> str:
    """Return the folder name under which comparable runs are kept.

    A simulated time depends on the constants of the profiles and not on the host, so for `sim` this
    is a hash over the contents of all profiles: runs under other constants land in another folder.
    Times of other devices depend on the machine, whose processor is hashed, too, and on its GPUs.

    Args:
        devices: devices of the run's cases.
    """
    digest = hashlib.sha256()
    if "sim" in devices:
        for path in sorted(FABRICS_DIR.glob("*.toml")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    if set(devices) - {"sim"}:
        digest.update(f"{_cpu_model()} {os.cpu_count()}".encode())
    if "cuda" in devices:
        digest.update(" ".join(_gpu_models()).encode())
    return f"{'-'.join(devices)}-{digest.hexdigest()[:8]}"


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *args],
            capture_output=True,
            text=True,
            timeout=_GIT_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _gpu_driver() -> str | None:
    """Return the version of NVIDIA's driver, without asking it."""
    try:
        text = (_NVIDIA / "version").read_text()
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+[\d.]*)\s", text)
    return found[1] if found else None


def _gpu_models() -> list[str]:
    """Return the products of this machine's GPUs, without asking the driver."""
    models = []
    for path in sorted(_NVIDIA.glob("gpus/*/information")):
        lines = path.read_text().splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return models


def _versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
