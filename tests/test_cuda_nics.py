"""NICs and their places: a tree of files that looks like a machine's."""

from pathlib import Path

import pytest

from comms.cuda.nics import Nic, find_nics, nearest, rails

_ROOT = "pci0000:15/0000:15:01.0"
_SWITCH = f"{_ROOT}/0000:16:00.0"
#: Devices by where they are on the bus, and their NUMA nodes.
DEVICES = {
    f"{_SWITCH}/0000:17:00.0/0000:18:00.0": "0",
    f"{_SWITCH}/0000:17:01.0/0000:19:00.0": "0",
    f"{_SWITCH}/0000:17:02.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0": "0",
    "pci0000:15/0000:15:02.0/0000:20:00.0": "0",
    "pci0000:30/0000:30:01.0/0000:31:00.0": "0",
    "pci0000:80/0000:80:01.0/0000:81:00.0": "1",
}
GPU = "0000:18:00.0"


def _nic(pci: str, *, is_up: bool = True) -> Nic:
    return Nic(f"nic{pci[5:7]}", 1, pci, is_up, "400 Gb/sec (4X NDR)", "InfiniBand")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder like `/sys`."""
    for path, node in DEVICES.items():
        folder = tmp_path / "devices" / path
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
        link = tmp_path / "bus/pci/devices" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
    return tmp_path


@pytest.mark.parametrize(
    ("pci", "way"),
    [
        ("0000:19:00.0", 0),
        ("0000:1c:00.0", 1),
        ("0000:20:00.0", 2),
        ("0000:31:00.0", 3),
        ("0000:81:00.0", 4),
    ],
)
def test_ways(root: Path, pci: str, way: int) -> None:
    (near,) = nearest(GPU, [_nic(pci)], root)
    assert near.way == way


def test_the_nearest_are_told_those_up_first(root: Path) -> None:
    far, near = _nic("0000:81:00.0"), _nic("0000:19:00.0", is_up=False)
    twin = Nic("twin", 2, near.pci, True, near.rate, near.layer)
    assert [one.nic for one in nearest(GPU, [far, near, twin], root)] == [twin, near]


def test_a_card_or_gpu_that_is_nowhere(root: Path) -> None:
    assert nearest(GPU, [_nic(""), _nic("0000:ff:00.0")], root) == []
    assert nearest("0000:ff:00.0", [_nic(GPU)], root) == []


def test_rails_share_nics_evenly(root: Path) -> None:
    nics = [_nic("0000:31:00.0"), _nic("0000:81:00.0"), _nic("0000:20:00.0", is_up=False)]
    twin = Nic("twin", 1, "0000:31:00.0", True, "", "")
    gpus = [GPU, "0000:19:00.0", "0000:20:00.0"]
    assert rails(gpus, [*nics, twin], root) == ["", "", ""]
    assert rails(gpus, [nics[0], nics[1], twin], root) == ["nic31", "twin", "nic31"]
    assert rails(gpus, [], root) == ["", "", ""]


def test_cards_as_the_kernel_shows_them(root: Path) -> None:
    for index, pci in ((10, "0000:19:00.0"), (2, "0000:81:00.0")):
        card = root / f"class/infiniband/mlx5_{index}"
        port = card / "ports/1"
        port.mkdir(parents=True)
        (card / "device").symlink_to(root / "bus/pci/devices" / pci)
        (port / "state").write_text("4: ACTIVE\n" if index == 2 else "1: DOWN\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
        (port / "link_layer").write_text("InfiniBand\n")
    assert find_nics(root) == [
        Nic("mlx5_2", 1, "0000:81:00.0", True, "400 Gb/sec (4X NDR)", "InfiniBand"),
        Nic("mlx5_10", 1, "0000:19:00.0", False, "400 Gb/sec (4X NDR)", "InfiniBand"),
    ]


def test_no_cards(tmp_path: Path) -> None:
    assert find_nics(tmp_path) == []
