"""What loads, launches and times looks as the fakes have it, where the packages are installed."""

import inspect
import re
from pathlib import Path
from typing import Any

import fake_launches
import fake_streams
import pytest
from test_cuda_signatures import _names

from comms.cuda.clocks import _SLOWING
from comms.cuda.links import _NVLINKS


def _told(member: Any) -> list[str]:  # noqa: ANN401
    """Return the parameters of a compiled function, by the first line of its documentation."""
    line = (member.__doc__ or "").partition("\n")[0]
    listed = re.search(r"\((.*)\)", line)
    assert listed, line
    words = [part.partition("=")[0].split()[-1] for part in listed[1].split(",") if part.strip()]
    return [word for word in words if word not in ("self", "*", r"\*")]


def test_streams_events_and_graphs_of_cupy() -> None:
    cuda = pytest.importorskip("cupy.cuda")
    for fake, real, names in (
        (fake_streams.FakeStream, cuda.Stream, ("__init__", "begin_capture", "end_capture")),
        (fake_streams._Event, cuda.Event, ("__init__", "record")),
        (fake_streams._Graph, cuda.Graph, ("launch",)),
    ):
        for name in names:
            ours = list(inspect.signature(getattr(fake, name)).parameters)
            assert ours[1:] == _names(getattr(real, name)), name
    assert _names(cuda.get_elapsed_time) == _names(fake_streams._elapsed)


def test_modules_and_kernels_of_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    documented = inspect.getdoc(cupy.RawModule) or ""
    for name in inspect.signature(fake_launches._Module.__init__).parameters:
        assert name == "self" or re.search(rf"^\s*{name} \(", documented, re.MULTILINE), name
    for name in ("get_function", "get_global"):
        assert callable(getattr(cupy.RawModule, name))
    # Its keywords go on to `Function.__call__`, which has no signature that could be read.
    assert _told(cupy.RawKernel.__call__) == ["grid", "block", "args", "**kwargs"]
    assert "shared_mem=0" in str(cupy.RawKernel.__call__.__doc__)
    assert _told(cupy.cuda.Function.linear_launch) == [
        *("size", "args", "shared_mem", "block_max_size", "stream", "enable_cooperative_groups")
    ]
    for name in ("kernel", "max_dynamic_shared_size_bytes"):
        assert hasattr(cupy.RawKernel, name)
    from cupy.cuda import driver

    assert _names(driver.occupancyMaxActiveBlocksPerMultiprocessor) == [
        *("func", "blockSize", "dynamicSMemSize")
    ]
    assert issubclass(driver.CUDADriverError, RuntimeError)
    assert (driver.CUDADriverError.__name__, driver.CUDADriverError.__module__) == (
        fake_launches.CUDADriverError.__name__,
        fake_launches.CUDADriverError.__module__,
    )


def test_ranges_of_cupy() -> None:
    nvtx = pytest.importorskip("cupy.cuda.nvtx")
    assert _told(nvtx.RangePush) == ["message", "id_color"]
    assert _told(nvtx.RangePop) == []


def test_events_that_a_graph_records() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert _told(driver.cuEventRecordWithFlags) == ["hEvent", "hStream", "flags"]
    assert int(driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL) == 1
    assert int(driver.CUresult.CUDA_SUCCESS) == 0


def test_clocks_of_nvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert pynvml.NVML_CLOCK_SM == 1
    assert issubclass(pynvml.NVMLError, Exception)
    bits = {
        pynvml.nvmlClocksEventReasonSwPowerCap,
        pynvml.nvmlClocksEventReasonHwSlowdown,
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    }
    assert set(_SLOWING) == bits
    for name, parameters in (
        ("nvmlInit", []),
        ("nvmlDeviceGetHandleByPciBusId", ["pciBusId"]),
        ("nvmlDeviceGetClockInfo", ["handle", "type"]),
        ("nvmlDeviceGetCurrentClocksEventReasons", ["handle"]),
    ):
        call = inspect.unwrap(getattr(pynvml, name))
        found = list(inspect.signature(call).parameters)
        # NVML wraps calls that take text.
        assert found in (parameters, ["args", "kwargs"]), name


def test_versions_of_nvlink() -> None:
    pynvml = pytest.importorskip("pynvml")
    known = re.compile(r"NVML_NVLINK_VERSION_(\d)_(\d)")
    matches = {
        number: known.fullmatch(name)
        for name, number in vars(pynvml).items()
        if "NVLINK_VERSION_" in name
    }
    found = {number: f"{match[1]}.{match[2]}" for number, match in matches.items() if match}
    assert found
    assert found.items() <= _NVLINKS.items()


def test_properties_of_a_card_that_are_asked_for() -> None:
    pytest.importorskip("cupy")
    import cupy_backends.cuda.api.runtime as runtime

    code = Path(runtime.__file__).read_bytes()
    for name in (b"sharedMemPerBlockOptin", b"multiProcessorCount", b"l2CacheSize"):
        assert name in code
