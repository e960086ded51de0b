"""The fakes look like the packages that they stand in for, where these are installed."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from fake_cuda import FakeRuntime, MemoryPointer, UnownedMemory
from fake_gpus import FakeMachine
from fake_nccl import Communicator, FakeCalls, FakeWindow
from fake_nccl_world import FakeNccl

from comms.cuda.nccl_nccl4py import KNOWN

RUNTIME = [
    name
    for name, member in vars(FakeRuntime).items()
    if inspect.isfunction(member) and not name.startswith("_")
]
NUMBERS = [name for name, value in vars(FakeRuntime).items() if isinstance(value, int)]


def _names(call: Callable[..., Any]) -> list[str]:
    """Return a function's parameters, of a compiled one those that its first line tells."""
    try:
        return [name for name in inspect.signature(call).parameters if name != "self"]
    except ValueError:
        line = (call.__doc__ or "").partition("\n")[0]
        listed = re.fullmatch(r"\w+(?:\.\w+)*\((.*)\).*", line)
        assert listed, line
        words = [
            part.partition("=")[0].split()[-1] for part in listed[1].split(",") if part.strip()
        ]
        return [word for word in words if word != "self"]


@pytest.mark.parametrize("name", RUNTIME)
def test_calls_of_the_runtime(name: str) -> None:
    runtime = pytest.importorskip("cupy.cuda").runtime
    assert _names(getattr(FakeRuntime, name)) == _names(getattr(runtime, name))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_the_runtime(name: str) -> None:
    runtime = pytest.importorskip("cupy.cuda").runtime
    assert getattr(runtime, name) == getattr(FakeRuntime, name)


@pytest.mark.parametrize("status", [2, 35, 100, 101, 201, 205, 400, 600, 704, 719])
def test_errors_of_the_runtime(status: int) -> None:
    from fake_gpus import CUDARuntimeError

    error = pytest.importorskip("cupy.cuda").runtime.CUDARuntimeError
    real, fake = error(status), CUDARuntimeError(status)
    assert (str(real), real.status) == (str(fake), fake.status)
    assert (type(real).__name__, type(real).__module__) == (
        type(fake).__name__,
        type(fake).__module__,
    )


def test_memory_of_cupy() -> None:
    cuda = pytest.importorskip("cupy.cuda")
    assert _names(UnownedMemory) == _names_of_class(cuda.UnownedMemory)
    assert _names(MemoryPointer) == _names_of_class(cuda.MemoryPointer)
    assert {"ptr", "size", "device_id"} <= set(dir(cuda.UnownedMemory))


def _names_of_class(kind: type) -> list[str]:
    line = (kind.__doc__ or "").partition("\n")[0]
    return [part.partition("=")[0].split()[-1] for part in line.partition("(")[2][:-1].split(",")]


def test_calls_of_nccl4py() -> None:
    calls = pytest.importorskip("nccl.bindings.nccl")
    for name, known in KNOWN.items():
        assert (getattr(calls, name).__doc__ or "").partition("\n")[0] == known
    fake = FakeCalls(FakeNccl(FakeMachine()))
    for name in ("get_version", "mem_alloc", "mem_free", "comm_abort"):
        assert _names(getattr(fake, name)) == _names(getattr(calls, name))
    for name in KNOWN:
        # What a fake call does is behind its documented wrapper.
        assert len(_names(getattr(fake, f"_{name}"))) in (len(_names(getattr(calls, name))), 1)
    assert _names_of_class(calls.Comm) == _names(fake.Comm)
    assert issubclass(calls.NCCLError, Exception)
    assert calls.NCCLError.__module__ == "nccl.bindings.nccl"


def test_classes_of_nccl4py() -> None:
    core = pytest.importorskip("nccl.core")
    for fake, real in (
        (Communicator, core.Communicator),
        (FakeWindow, core.RegisteredWindowHandle),
    ):
        for name, member in vars(fake).items():
            if name.startswith("_") or name in ("nccl", "calls", "link"):
                continue
            assert hasattr(real, name), name
            if callable(member) or isinstance(member, classmethod):
                assert _names(getattr(fake, name)) == _names(getattr(real, name)), name
            else:
                assert isinstance(inspect.getattr_static(real, name), property), name
    assert isinstance(inspect.getattr_static(core.RegisteredWindowHandle, "is_valid"), property)


def test_names_of_nccl4py() -> None:
    core = pytest.importorskip("nccl.core")
    assert core.CTAPolicy.ZERO == 2
    assert core.WindowFlag.COLL_SYMMETRIC == 1
    config = core.NCCLConfig(min_ctas=8, max_ctas=8)
    assert (config.min_ctas, config.max_ctas) == (8, 8)
    assert core.NCCLConfig(cta_policy=core.CTAPolicy.ZERO).cta_policy == 2
    assert bytes(core.UniqueId.from_bytes(bytes(range(128))).as_bytes) == bytes(range(128))
    for name in ("get_unique_id", "group_start", "group_end"):
        assert callable(getattr(core, name))


def test_results_of_nccl() -> None:
    results = pytest.importorskip("nccl.bindings.nccl").Result
    found = (results.Success, results.InProgress, results.RemoteError, results.SystemError)
    assert tuple(int(result) for result in found) == (0, 7, 6, 2)


def test_types_of_nccl() -> None:
    core = pytest.importorskip("nccl.core")
    from comms.cuda import nccl_library as library

    found = (core.UINT8, core.FLOAT16, core.FLOAT32, core.BFLOAT16, core.SUM)
    known = (library.UINT8, library.FLOAT16, library.FLOAT32, library.BFLOAT16, library.SUM)
    assert tuple(int(number) for number in found) == known


def test_cards_have_what_is_asked_of_them() -> None:
    core = pytest.importorskip("cuda.core")
    assert isinstance(inspect.getattr_static(core.Device, "uuid"), property)


def test_nccl_of_cupy() -> None:
    binding = pytest.importorskip("cupy.cuda.nccl")
    if not binding.available:
        pytest.skip("NCCL is not installed")
    communicator = binding.NcclCommunicator
    count = ["sendbuf", "recvbuf", "count", "datatype", "stream"]
    assert _names(communicator.allGather) == count
    assert _names(communicator.send) == ["sendbuf", "count", "datatype", "peer", "stream"]
    assert _names(communicator.recv) == ["recvbuf", "count", "datatype", "peer", "stream"]
    assert _names(communicator.reduceScatter) == [
        "sendbuf", "recvbuf", "recvcount", "datatype", "op", "stream",
    ]  # fmt: skip
    for name in ("check_async_error", "abort", "destroy"):
        assert _names(getattr(communicator, name)) == []
