"""What GPU packages raise, told in a sentence that names the remedy."""

import sys

import fake_cuda
import fake_cupy_nccl
import fake_gpus
import fake_nccl
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine

from comms.cuda.errors import explained, failure_of, is_fatal
from comms.errors import RuntimeFailure, UsageError


def _told(error: BaseException, num_bytes: int | None = None) -> str:
    failure = failure_of(error, "it", num_bytes)
    assert failure is not None
    assert failure.exit_code == 3
    assert "\n" not in str(failure)
    return str(failure)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """GPUs that are there."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return machine


def test_no_driver_and_an_old_one(machine: FakeMachine) -> None:
    error = fake_gpus.CUDARuntimeError(35)
    machine.driver = 0
    assert "there is no NVIDIA driver (libcuda.so.1)" in _told(error)
    machine.driver = 12040
    assert _told(error) == (
        "it: the driver is of CUDA 12.4, older than the installed packages of CUDA 13.2: install a "
        "newer driver, or '.[cuda12]'"
    )


@pytest.mark.parametrize(
    "error",
    [
        fake_cuda.DynamicLibNotFoundError('"cuda" is an NVIDIA driver library and can only be'),
        RuntimeError("CuPy failed to load libcuda.so.1: OSError: libcuda.so.1: cannot open"),
    ],
)
def test_no_driver_as_other_packages_say(error: Exception) -> None:
    assert "there is no NVIDIA driver" in _told(error)


def test_a_library_that_is_not_installed() -> None:
    error = fake_cuda.DynamicLibNotFoundError('Failure finding "libnccl.so.2": No such file')
    assert _told(error).startswith("it: libnccl.so.2 is not installed: pip install -e '.[cuda13]'")


def test_no_device(machine: FakeMachine) -> None:
    assert "there is no GPU for this process: look at nvidia-smi and CUDA_VISIBLE_DEVICES" in _told(
        fake_gpus.CUDARuntimeError(100)
    )


def test_out_of_memory_says_what_was_asked_and_what_is_free(machine: FakeMachine) -> None:
    machine.cards[0].used = machine.cards[0].total - 5_000_000
    told = _told(fake_gpus.CUDARuntimeError(2), 7_000_000)
    assert "out of GPU memory: 0.007 GB asked for, 0.005 GB of 1.1 GB free" in told
    machine.faults["memGetInfo", 0] = 719
    assert "more asked for, an unknown part free" in _told(fake_gpus.CUDARuntimeError(2))


def test_out_of_the_memory_of_cupys_pool(machine: FakeMachine) -> None:
    kind = type(
        "OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory", "_size": 9e9}
    )
    assert "9.000 GB asked for" in _told(kind())


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name in (("cupy", "CuPy"), ("nccl", "nccl4py"), ("pynvml", "nvidia-ml-py")):
        fake_cuda.remove(monkeypatch, package)
        with (
            pytest.raises(RuntimeFailure, match=f"^it: {name} is not installed: pip install -e"),
            explained("it"),
        ):
            __import__(package)


def test_a_package_that_cannot_be_imported() -> None:
    error = ImportError("libcudart.so.13: cannot open shared object file", name="cupy._core")
    assert "CuPy cannot be imported (libcudart.so.13: cannot" in _told(error)


def test_nccl() -> None:
    assert "another rank has failed" in _told(fake_nccl.NCCLError(6))
    assert "NCCL_DEBUG=WARN tells which" in _told(fake_cupy_nccl.NcclError(1))
    assert _told(fake_nccl.NCCLError(1)) != _told(fake_nccl.NCCLError(2))


def test_an_nccl_that_lacks_a_function() -> None:
    kind = type("FunctionNotFoundError", (RuntimeError,), {})
    kind.__module__ = "nccl.bindings._internal.utils"
    told = _told(kind("function ncclGetPeerDevicePointer is not found"))
    assert "ncclGetPeerDevicePointer is not found: install NCCL anew" in told
    kind.__module__ = "another"
    assert failure_of(kind("not found"), "it") is None


def test_what_cuda_core_says() -> None:
    kind = type("CUDAError", (Exception,), {"__module__": "cuda.core._utils.cuda_utils"})
    assert _told(kind("CUDA_ERROR_NO_DEVICE: none")) == "it: CUDA_ERROR_NO_DEVICE: none"


@pytest.mark.parametrize("status", [46, 201, 205, 217, 400, 700, 701, 719, 720, 802, 803, 805])
def test_every_status_has_its_own_words(status: int) -> None:
    told = _told(fake_gpus.CUDARuntimeError(status))
    assert told.endswith(f", {status})")
    assert told.count(" ") > 6


def test_what_is_not_of_a_gpu_package_stays_as_it_is() -> None:
    assert failure_of(ValueError("a bug"), "it") is None
    assert failure_of(ModuleNotFoundError("no pandas", name="pandas"), "it") is None
    with pytest.raises(ZeroDivisionError), explained("it"):
        _ = 1 / 0
    with pytest.raises(UsageError, match="^as it was$"), explained("it"):
        raise UsageError("as it was")


def test_which_errors_leave_a_process_without_its_gpu() -> None:
    assert is_fatal(fake_gpus.CUDARuntimeError(719))
    # NVLink's errors of memory of a peer, as CUDA 13 contains them.
    assert is_fatal(fake_gpus.CUDARuntimeError(226))
    assert not is_fatal(fake_gpus.CUDARuntimeError(2))
    assert not is_fatal(ValueError())


def test_nothing_imports_a_gpu_package() -> None:
    import subprocess

    code = (
        "import sys, comms.cuda.windows, comms.cuda.abort, comms.cuda.nccl, comms.cuda.links, "
        "comms.cuda.nics; sys.exit(','.join({'cupy', 'nccl', 'cuda', 'pynvml'} & set(sys.modules)) "
        "or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
