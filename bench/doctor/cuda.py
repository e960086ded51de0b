"""What `epbench doctor --device cuda` finds: driver, GPUs and their links, NICs, packages, NCCL."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from comms.cuda import toolchain
from comms.cuda.cards import Card, Seen, assign, peer_matrix, visible_cards
from comms.cuda.errors import version
from comms.cuda.links import driver_version, links_of
from comms.cuda.nccl import load
from comms.cuda.nccl_library import nccl_version
from comms.cuda.nics import WAYS, find_nics, nearest, rails
from comms.errors import EpbenchError, RuntimeFailure

if TYPE_CHECKING:
    from bench.doctor.ranks import Row
    from bench.pages.doctor import Page

#: Packages of a GPU: what is imported, and the distributions that bring it, one for each CUDA.
_PACKAGES = {
    "CuPy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "numba-cuda": ("numba-cuda",),
    "cuda-core": ("cuda-core",),
    "cuda-bindings": ("cuda-bindings",),
    "nccl4py": ("nccl4py",),
    "NCCL": ("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
    "nvidia-ml-py": ("nvidia-ml-py",),
    "NVRTC": ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
    "NVVM": ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
    "nvJitLink": ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12"),
}


def tell_cuda(page: Page) -> None:
    """Tell all that device `cuda` needs of this machine, and whether it works."""
    num_bad = len(page.bad)
    _tell_packages(page)
    _tell_compiler(page)
    _tell_nccl(page)
    try:
        cards = visible_cards()
    except RuntimeFailure as error:
        # Without a GPU there is nothing to say of what hangs on it.
        page.fail("GPUs", str(error))
    else:
        _tell_driver(page)
        for card in cards:
            _tell_card(page, card)
        _tell_peers(page, cards)
        _tell_nics(page, cards)
    if bad := list(dict.fromkeys(page.bad[num_bad:])):
        page.fail("device cuda", f"cannot run: see {', '.join(bad)}")
    else:
        page.ok("device cuda", "measures on GPUs, a process per GPU")


def tell_cards(page: Page, rows: Sequence[Row]) -> None:
    """Tell which GPU each rank would have.

    Args:
        page: where to.
        rows: all ranks.
    """
    for row in rows:
        if row.why_no_gpus:
            page.fail("ranks' GPUs", f"rank {row.rank}: {row.why_no_gpus}")
            return
    try:
        indices = assign([Seen(row.rank, row.host, tuple(row.gpus)) for row in rows])
    except RuntimeFailure as error:
        page.fail("ranks' GPUs", str(error))
        return
    pairs = zip(rows, indices, strict=True)
    each = ", ".join(f"rank {row.rank} {row.gpus[index][:13]}" for row, index in pairs)
    page.ok("ranks' GPUs", f"each rank has one of its own: {each}")


def gpus_of_this_rank() -> tuple[list[str], str]:
    """Return the UUIDs of the GPUs that this process sees, or why it sees none."""
    try:
        return [card.uuid for card in visible_cards()], ""
    except RuntimeFailure as error:
        return [], str(error)


def _tell_packages(page: Page) -> None:
    found = {name: _installed(names) for name, names in _PACKAGES.items()}
    versions = [f"{name} {number}" for name, number in found.items() if number]
    if versions:
        page.ok("packages", ", ".join(versions))
    if missing := [name for name, number in found.items() if not number]:
        page.note(
            "packages",
            f"not installed by pip: {', '.join(missing)}: pip install -e '.[cuda13]' (or "
            "'.[cuda12]'), where the system does not bring them",
        )


def _installed(names: Sequence[str]) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _tell_compiler(page: Page) -> None:
    try:
        found = toolchain.versions()
    except EpbenchError as error:
        page.fail("compiler", str(error))
    else:
        libraries = ", ".join(f"{name} {found[name]}" for name in ("nvrtc", "nvvm", "nvjitlink"))
        page.ok("compiler", libraries)


def _tell_nccl(page: Page) -> None:
    try:
        page.ok("NCCL", f"{nccl_version(load('nccl4py').version)}, called by nccl4py")
    except RuntimeFailure as error:
        page.note("NCCL", f"{error}: the baseline nccl needs it")


def _tell_driver(page: Page) -> None:
    from cupy.cuda import runtime

    cuda = f"CUDA {version(runtime.driverGetVersion())}"
    packages = f"packages of CUDA {version(runtime.runtimeGetVersion())}"
    try:
        page.ok("driver", f"{driver_version()}, of {cuda}, {packages}")
    except RuntimeFailure as error:
        page.ok("driver", f"of {cuda}, {packages}")
        page.note("driver", f"{error}; links of GPUs are not told")


def _tell_card(page: Page, card: Card) -> None:
    text = (
        f"{card.index} is {card.name}, {card.arch}, {card.num_sms} SMs, "
        f"{card.memory_bytes / 1e9:.0f} GB, {card.pci}, {card.uuid}"
    )
    try:
        links = links_of(card)
    except RuntimeFailure:
        page.ok("GPUs", text)
        return
    pcie = f"PCIe {links.pcie_generation} x{links.pcie_lanes} now"
    nvlink = f"{links.num_nvlinks} NVLinks of version {links.nvlink_version}"
    page.ok("GPUs", f"{text}, {nvlink if links.num_nvlinks else 'no NVLink'}, {pcie}")


def _tell_peers(page: Page, cards: Sequence[Card]) -> None:
    if len(cards) == 1:
        page.note("peers", "one GPU: several ranks share it in one process (--ranks-per-card)")
        return
    try:
        matrix = peer_matrix(cards)
    except RuntimeFailure as error:
        page.fail("peers", str(error))
        return
    apart = [
        f"{one} and {two}"
        for one, row in enumerate(matrix)
        for two, reaches in enumerate(row)
        if one < two and not (reaches and matrix[two][one])
    ]
    if apart:
        page.fail(
            "peers",
            f"GPUs {', '.join(apart)} do not address each other's memory: use GPUs linked by "
            "NVLink or below one PCIe root (nvidia-smi topo -m)",
        )
    else:
        page.ok("peers", f"all {len(cards)} GPUs address each other's memory")


def _tell_nics(page: Page, cards: Sequence[Card]) -> None:
    nics = find_nics()
    if not nics:
        page.note("NICs", "no RDMA card (/sys/class/infiniband): worlds of one node only")
        return
    for nic in nics:
        text = f"{nic.name} port {nic.port}, {nic.layer}, {nic.rate}"
        if nic.is_up:
            page.ok("NICs", text)
        else:
            page.note("NICs", f"{text} is down: ibstat tells why")
    for card, rail in zip(cards, rails([card.pci for card in cards], nics), strict=True):
        near = nearest(card.pci, nics)
        if not rail:
            page.note("rails", f"GPU {card.index} has no NIC that is up near it")
            continue
        names = ", ".join(one.nic.name for one in near)
        page.ok("rails", f"GPU {card.index} takes {rail}; nearest {names}, {WAYS[near[0].way]}")
