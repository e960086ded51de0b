"""What CUDA, NCCL and missing packages say, told in one sentence with what to do about it.

Errors are known by the names of their types and modules: no GPU package is imported for them, and
they can be told where a package is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comms.errors import EpbenchError, RuntimeFailure

#: What installs everything that device `cuda` needs.
INSTALL = "pip install -e '.[cuda13]', or '.[cuda12]' where the driver is of CUDA 12"
#: Packages by the first name that is imported of them.
_PACKAGES = {
    "cupy": "CuPy",
    "cupy_backends": "CuPy",
    "cuda": "cuda-core",
    "nccl": "nccl4py",
    "pynvml": "nvidia-ml-py",
}
_OUT_OF_MEMORY = 2
_OLD_DRIVER = 35
#: After these a process can do nothing more with its GPU, not even free memory.
_FATAL = {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721}
#: What a status of CUDA means here, and the remedy; the runtime and the driver use the same ones.
_STATUSES = {
    46: "the GPU is busy or in exclusive mode: end what else uses it (nvidia-smi shows it)",
    100: "there is no GPU for this process: look at nvidia-smi and CUDA_VISIBLE_DEVICES, and start "
    "containers with their GPUs (--gpus all)",
    101: "there is no GPU of this number: look at CUDA_VISIBLE_DEVICES",
    201: "memory cannot be mapped into the process that it belongs to, or the process has no GPU "
    "yet: start one process a GPU, or several ranks in one process (--ranks-per-card)",
    205: "memory of another process cannot be mapped: let all ranks see all GPUs of the node "
    "(CUDA_VISIBLE_DEVICES) and run in one container (--ipc=host)",
    209: "the code was compiled for another GPU: compile for this one",
    214: "the GPU's memory has an uncorrectable error: look at nvidia-smi -q -d ECC",
    217: "these two GPUs cannot address each other's memory: use GPUs that are linked by NVLink or "
    "below one PCIe root (nvidia-smi topo -m)",
    220: "an NVLink has an uncorrectable error: look at nvidia-smi nvlink -e",
    222: "the driver is older than the code's PTX: install a newer driver",
    400: "a handle is not valid: memory of another process cannot be mapped; let all ranks see all "
    "GPUs of the node (CUDA_VISIBLE_DEVICES) and run in one container (--ipc=host)",
    700: "a kernel used memory that is not there",
    701: "a kernel needs more registers or shared memory than an SM has: use fewer warps",
    702: "a kernel ran longer than the display's limit: use a GPU that drives no display",
    711: "a GPU can address only so many others: start fewer ranks a node",
    719: "a kernel failed: compute-sanitizer finds where",
    720: "the blocks of a cooperative launch do not fit on the GPU at once: use fewer SMs or warps",
    800: "the GPU does not permit this: another user or a virtual machine owns it",
    801: "the GPU or the driver does not support this",
    802: "the GPUs are not ready: start nvidia-fabricmanager (systemctl status), or wait for it",
    803: "the driver's kernel module and its library differ: restart the machine",
    804: "this GPU does not support the forward-compatible driver: install the driver itself",
    805: "the MPS server cannot be reached: start it, or unset CUDA_MPS_PIPE_DIRECTORY",
}
#: What a result of NCCL means, and the remedy.
_RESULTS = {
    1: "a CUDA call failed inside: NCCL_DEBUG=WARN tells which",
    2: "a system call, the network or shared memory failed: NCCL_DEBUG=WARN tells which, and "
    "containers may need more shared memory (docker run --shm-size)",
    3: "it has an internal error: NCCL_DEBUG=WARN tells where",
    4: "it was given an argument that is not valid: NCCL_DEBUG=WARN tells which",
    5: "its calls do not fit together: NCCL_DEBUG=WARN tells how",
    6: "another rank has failed, or a link or the network to it",
    8: "it waited too long for another rank",
}


@contextmanager
def explained(doing: str, num_bytes: int | None = None) -> Iterator[None]:
    """Turn what GPU packages raise into an error of ours.

    Args:
        doing: what is tried, for example `a window of rank 3`.
        num_bytes: bytes that are asked for.

    Raises:
        RuntimeFailure: a GPU package failed or is not there.
    """
    try:
        yield
    except EpbenchError:
        raise
    except Exception as error:
        failure = failure_of(error, doing, num_bytes)
        if failure is None:
            raise
        raise failure from error


def failure_of(
    error: BaseException, doing: str, num_bytes: int | None = None
) -> RuntimeFailure | None:
    """Return what to tell of an error, None where no GPU package raised it."""
    kind, package = type(error).__name__, type(error).__module__.partition(".")[0]
    text = " ".join(str(error).split())
    why: str | None
    if isinstance(error, ImportError):
        why = _missing(error, text)
    elif kind == "DynamicLibNotFoundError" or "CuPy failed to load" in text:
        why = _missing_library(text)
    elif kind == "OutOfMemoryError" and package == "cupy":
        why = _out_of_memory(num_bytes if num_bytes is not None else getattr(error, "_size", None))
    elif kind in ("CUDARuntimeError", "CUDADriverError"):
        why = _of_cuda(int(getattr(error, "status", 0)), text, num_bytes)
    elif kind in ("NCCLError", "NcclError"):
        status = int(getattr(error, "status", 0))
        why = f"NCCL failed: {_RESULTS.get(status, text)} (result {status})"
    elif kind in ("NcclInvalid", "FunctionNotFoundError", "NotSupportedError") and package in (
        "nccl",
        "cuda",
    ):
        why = f"NCCL cannot do this: {text}: install NCCL anew ({INSTALL})"
    elif kind == "CUDAError" and package == "cuda":
        why = text
    else:
        why = None
    return None if why is None else RuntimeFailure(f"{doing}: {why}")


def nccl_words(result: int) -> str:
    """Return what a result of NCCL means."""
    return _RESULTS.get(result, f"result {result}")


def is_fatal(error: BaseException) -> bool:
    """Whether an error leaves the process unable to use its GPU."""
    status = getattr(error, "status", None)
    return type(error).__name__ in ("CUDARuntimeError", "CUDADriverError") and status in _FATAL


def no_driver() -> str:
    """Return the sentence for a machine that has no driver."""
    return (
        "there is no NVIDIA driver (libcuda.so.1): device cuda needs a GPU and its driver, use sim "
        "or cpu without, and start containers with their GPUs (--gpus all)"
    )


def _missing(error: ImportError, text: str) -> str | None:
    root = (error.name or "").partition(".")[0]
    if root not in _PACKAGES:
        return None
    if isinstance(error, ModuleNotFoundError):
        return f"{_PACKAGES[root]} is not installed: {INSTALL}"
    return f"{_PACKAGES[root]} cannot be imported ({text}): install it anew, {INSTALL}"


def _missing_library(text: str) -> str:
    if "libcuda.so" in text or "NVIDIA driver library" in text:
        return no_driver()
    found = re.search(r"lib[\w.+-]+\.so[\w.]*", text)
    return f"{found.group() if found else text} is not installed: {INSTALL}"


def _of_cuda(status: int, text: str, num_bytes: int | None) -> str:
    if status == _OUT_OF_MEMORY:
        return _out_of_memory(num_bytes)
    if status == _OLD_DRIVER:
        return _old_driver()
    name, _, words = text.partition(": ")
    return f"{_STATUSES.get(status, words or text)} ({name}, {status})"


def _old_driver() -> str:
    from cupy.cuda import runtime

    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return no_driver()
    return (
        f"the driver is of CUDA {version(driver)}, older than the installed packages of CUDA "
        f"{version(needed)}: install a newer driver, or '.[cuda{driver // 1000}]'"
    )


def _out_of_memory(num_bytes: int | None) -> str:
    asked = "more" if num_bytes is None else f"{num_bytes / 1e9:.3f} GB"
    return (
        f"out of GPU memory: {asked} asked for, {_free()} free: use fewer tokens, or end what else "
        "uses the GPU (nvidia-smi shows it)"
    )


def _free() -> str:
    from cupy.cuda import runtime

    try:
        free, total = runtime.memGetInfo()
    except Exception:  # noqa: BLE001
        # The GPU that has failed may not answer either.
        return "an unknown part"
    return f"{free / 1e9:.3f} GB of {total / 1e9:.1f} GB"


def version(number: Any) -> str:  # noqa: ANN401
    """Return a version of CUDA in words, for example 12.4 for 12040."""
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"
