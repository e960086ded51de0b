"""Network cards for RDMA, and which is nearest to which GPU, by their places on the PCI bus."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
#: A way between two devices, nearest first: over one PCIe switch, over several, over the bridge of
#: one CPU, over all of one NUMA node, and between NUMA nodes.
WAYS = ("one switch", "switches", "host bridge", "NUMA node", "CPUs")
_PORT_AND_DEVICE = 2


@dataclass(frozen=True, slots=True)
class Nic:
    """A port of a network card.

    Attributes:
        name: of the card, for example `mlx5_0`.
        port: number of the port.
        pci: address on the PCI bus, empty where the card is on none.
        is_up: whether its link is.
        rate: as the driver tells it, for example `400 Gb/sec (4X NDR)`.
        layer: `InfiniBand` or `Ethernet`.
    """

    name: str
    port: int
    pci: str
    is_up: bool
    rate: str
    layer: str


@dataclass(frozen=True, slots=True)
class Near:
    """A NIC as seen from a GPU.

    Attributes:
        nic: which.
        way: index in `WAYS`.
    """

    nic: Nic
    way: int


def find_nics(root: Path = SYS) -> list[Nic]:
    """Return the ports of all RDMA cards, by name; none where the kernel knows no such cards."""
    nics = []
    for card in sorted((root / "class/infiniband").glob("*"), key=_natural):
        pci = _real(card / "device")
        for port in sorted((card / "ports").glob("*"), key=_natural):
            nics.append(
                Nic(
                    name=card.name,
                    port=int(port.name),
                    pci=pci.name if pci is not None else "",
                    is_up=_text(port / "state").endswith("ACTIVE"),
                    rate=_text(port / "rate"),
                    layer=_text(port / "link_layer"),
                )
            )
    return nics


def nearest(pci: str, nics: Sequence[Nic], root: Path = SYS) -> list[Near]:
    """Return the NICs that are nearest to a GPU, all that are equally near; those up come first.

    Args:
        pci: of the GPU.
        nics: of this host.
        root: where `sysfs` is.
    """
    ways = [Near(nic, way) for nic in nics if (way := _way(pci, nic.pci, root)) is not None]
    least = min((near.way for near in ways), default=0)
    return sorted((near for near in ways if near.way == least), key=lambda near: not near.nic.is_up)


def rails(cards: Sequence[str], nics: Sequence[Nic], root: Path = SYS) -> list[str]:
    """Return the NIC of each GPU: its nearest, and of several the one that the fewest share.

    Args:
        cards: PCI addresses of the GPUs.
        nics: of this host.
        root: where `sysfs` is.

    Returns:
        Name of a NIC, empty where there is none.
    """
    users: dict[str, int] = {}
    names = []
    for pci in cards:
        near = [one.nic.name for one in nearest(pci, nics, root) if one.nic.is_up]
        name = min(near, key=lambda name: users.get(name, 0), default="")
        users[name] = users.get(name, 0) + 1
        names.append(name)
    return names


def _way(one: str, two: str, root: Path) -> int | None:
    """Return the index in `WAYS` of the way between two devices, None where one is not there."""
    if not one or not two:
        return None
    first, second = _real(root / "bus/pci/devices" / one), _real(root / "bus/pci/devices" / two)
    if first is None or second is None:
        return None
    # A path has the root complex, `pci0000:00`, then every bridge down to the device.
    shared = Path(os.path.commonpath([first, second]))
    if not shared.name.startswith("pci") and ":" in shared.name:
        below = max(len(path.relative_to(shared).parts) for path in (first, second))
        # A port of the shared switch and the device, where no other switch lies between.
        return 0 if below <= _PORT_AND_DEVICE else 1
    if shared.name.startswith("pci") and ":" in shared.name:
        return 2
    nodes = {_text(path / "numa_node") for path in (first, second)}
    return 3 if len(nodes) == 1 and "-1" not in nodes else 4


def _real(path: Path) -> Path | None:
    return path.resolve() if path.exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _natural(path: Path) -> tuple[int, str]:
    """Order `mlx5_2` before `mlx5_10`."""
    return len(path.name), path.name
