"""`epbench doctor --device cuda`: GPUs, links, NICs, packages, NCCL; and where there is no GPU."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fake_cuda import install_cuda, remove
from fake_gpus import FakeCard, FakeMachine
from fake_nccl import install_nccl
from fake_nccl_world import FakeNccl

from bench.cli import main
from bench.doctor import cuda as doctor_cuda
from bench.doctor.cuda import tell_cards
from bench.doctor.ranks import Row
from bench.pages.doctor import Page
from comms.cuda import toolchain
from comms.cuda.nics import Nic


class NVMLError(Exception):
    """NVML's error."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Two GPUs."""
    # Compilers are looked for once, and never behind the fakes.
    toolchain.versions()
    machine = FakeMachine(cards=[FakeCard(0), FakeCard(1)])
    install_cuda(monkeypatch, machine)
    nvml = ModuleType("pynvml")
    nvml.__dict__.update(
        NVMLError=NVMLError,
        NVMLError_InvalidArgument=type("NVMLError_InvalidArgument", (NVMLError,), {}),
        NVMLError_NotSupported=type("NVMLError_NotSupported", (NVMLError,), {}),
        NVML_NVLINK_MAX_LINKS=36,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65.06",
        nvmlDeviceGetHandleByPciBusId=lambda pciBusId: pciBusId,
        nvmlDeviceGetNvLinkVersion=lambda device, link: 6,
        nvmlDeviceGetCurrPcieLinkGeneration=lambda handle: 5,
        nvmlDeviceGetCurrPcieLinkWidth=lambda handle: 16,
    )

    def state(device: object, link: int) -> int:
        if link >= 18:
            raise nvml.__dict__["NVMLError_InvalidArgument"]()
        return int(link < 8)

    nvml.__dict__["nvmlDeviceGetNvLinkState"] = state
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return machine


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeNccl:
    """NCCL."""
    return install_nccl(monkeypatch, machine)


def _found(capsys: pytest.CaptureFixture[str], exit_code: int) -> dict[str, str]:
    assert main(["doctor", "--device", "cuda"]) == exit_code
    found: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        match = re.fullmatch(r"(ok|note|bad) +(\S+(?: \S+)*)  +(\S.*)", line)
        assert match, line
        found[match[2]] = f"{found.get(match[2], '')}{match[1]}: {match[3]}\n"
    return found


def test_all_is_there(
    machine: FakeMachine,
    nccl: FakeNccl,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nics = [
        Nic("mlx5_0", 1, "0000:1a:00.0", True, "400 Gb/sec (4X NDR)", "InfiniBand"),
        Nic("mlx5_1", 1, "0000:1d:00.0", False, "40 Gb/sec (4X QDR)", "InfiniBand"),
    ]
    monkeypatch.setattr(doctor_cuda, "find_nics", lambda: nics)
    monkeypatch.setattr(doctor_cuda, "rails", lambda *_: ["mlx5_0", ""])
    monkeypatch.setattr(doctor_cuda, "nearest", lambda *_: [SimpleNamespace(nic=nics[0], way=1)])
    found = _found(capsys, 0)
    assert found["driver"] == "ok: 580.65.06, of CUDA 13.2, packages of CUDA 13.2\n"
    first, second = found["GPUs"].splitlines()
    assert first == (
        f"ok: 0 is NVIDIA H800, sm_90, 132 SMs, 1 GB, 0000:1b:00.0, {machine.cards[0].uuid}, "
        "8 NVLinks of version 4.0, PCIe 5 x16 now"
    )
    assert second.startswith("ok: 1 is")
    assert found["peers"] == "ok: all 2 GPUs address each other's memory\n"
    assert found["NCCL"] == "ok: 2.32.3, called by nccl4py\n"
    assert "note: mlx5_1 port 1, InfiniBand, 40 Gb/sec (4X QDR) is down" in found["NICs"]
    assert "ok: GPU 0 takes mlx5_0; nearest mlx5_0, switches" in found["rails"]
    assert "note: GPU 1 has no NIC that is up near it" in found["rails"]
    assert found["device cuda"].startswith("ok: measures on GPUs")


def test_no_driver_is_one_line(
    machine: FakeMachine, nccl: FakeNccl, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.driver = 0
    found = _found(capsys, 2)
    assert found["GPUs"].count("\n") == 1
    assert "bad: GPUs cannot be looked for: there is no NVIDIA driver" in found["GPUs"]
    assert not {"driver", "peers", "NICs", "rails"} & set(found)
    assert found["device cuda"] == "bad: cannot run: see GPUs\n"


def test_no_packages(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove(monkeypatch, "cupy", "cuda", "nccl", "pynvml")
    found = _found(capsys, 2)
    assert "is not installed: pip install -e '.[cuda13]'" in found["GPUs"]
    assert found["NCCL"].startswith("note: NCCL cannot be loaded by nccl4py")


def test_gpus_apart_and_no_nvml(
    machine: FakeMachine,
    nccl: FakeNccl,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.blocked = {(0, 1)}
    remove(monkeypatch, "pynvml")
    found = _found(capsys, 2)
    assert found["peers"].startswith("bad: GPUs 0 and 1 do not address each other's memory")
    assert "nvidia-ml-py is not installed" in found["driver"]
    assert "NVLink" not in found["GPUs"]
    assert found["device cuda"] == "bad: cannot run: see peers\n"


def test_links_that_nvml_does_not_tell(
    machine: FakeMachine,
    nccl: FakeNccl,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: object) -> None:
        raise NVMLError("Not Found")

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetHandleByPciBusId", refuse)
    assert "PCIe" not in _found(capsys, 0)["GPUs"]


def test_one_gpu(machine: FakeMachine, nccl: FakeNccl, capsys: pytest.CaptureFixture[str]) -> None:
    machine.cards.pop()
    found = _found(capsys, 0)
    assert "--ranks-per-card" in found["peers"]
    assert not Path("/sys/class/infiniband").exists() or "NICs" in found


def _told(rows: list[Row]) -> tuple[str, list[str]]:
    said: list[str] = []
    page = Page(said.append)
    tell_cards(page, rows)
    return "".join(said), page.bad


def _row(rank: int, *gpus: str, why: str = "") -> Row:
    return Row(rank, rank, 0, 1, [0], 1, list(gpus), why)


def test_gpus_of_ranks() -> None:
    text, bad = _told([_row(0, "aaaa", "bbbb"), _row(1, "aaaa", "bbbb")])
    assert "each rank has one of its own: rank 0 aaaa, rank 1 bbbb" in text
    assert bad == []


def test_ranks_that_would_share_a_gpu() -> None:
    text, bad = _told([_row(0, "aaaa"), _row(1, "aaaa")])
    assert "ranks 0 and 1 would have the same GPU (aaaa)" in text
    assert bad == ["ranks' GPUs"]


def test_a_rank_that_sees_none() -> None:
    text, bad = _told([_row(0, "aaaa"), _row(1, why="there is no NVIDIA driver")])
    assert "rank 1: there is no NVIDIA driver" in text
    assert bad == ["ranks' GPUs"]
