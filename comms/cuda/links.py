"""How a GPU is linked, as the driver's management library tells."""

from __future__ import annotations

from dataclasses import dataclass

from comms.cuda.cards import Card
from comms.errors import RuntimeFailure

#: NVLink's versions by NVML's numbers of them.
_NVLINKS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a GPU.

    Attributes:
        num_nvlinks: NVLinks that are up.
        nvlink_version: their version, for example `4.0`, empty where there are none.
        pcie_generation: of the link as it is trained now, which may be slower when idle.
        pcie_lanes: likewise.
    """

    num_nvlinks: int
    nvlink_version: str
    pcie_generation: int
    pcie_lanes: int


def driver_version() -> str:
    """Return the version of the driver, for example 580.65.06.

    Raises:
        RuntimeFailure: NVML does not tell.
    """
    import_and_begin()
    import pynvml

    return str(pynvml.nvmlSystemGetDriverVersion())


def links_of(card: Card) -> Links:
    """Return how a GPU is linked.

    Raises:
        RuntimeFailure: NVML does not tell.
    """
    import_and_begin()
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByPciBusId(card.pci)
        up = [link for link in range(pynvml.NVML_NVLINK_MAX_LINKS) if _is_up(handle, link)]
        return Links(
            num_nvlinks=len(up),
            nvlink_version=_version(handle, up[0]) if up else "",
            pcie_generation=int(pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
            pcie_lanes=int(pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
        )
    except pynvml.NVMLError as error:
        raise RuntimeFailure(f"NVML does not tell the links of {card.pci} ({error})") from error


def import_and_begin() -> None:
    """Start NVML; once more does no harm.

    Raises:
        RuntimeFailure: package or library are missing.
    """
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeFailure("nvidia-ml-py is not installed: pip install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeFailure(f"NVML cannot start ({error}): install the driver") from error


def _version(handle: object, link: int) -> str:
    import pynvml

    number = int(pynvml.nvmlDeviceGetNvLinkVersion(handle, link))
    return _NVLINKS.get(number, f"number {number} of NVML")


def _is_up(handle: object, link: int) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetNvLinkState(handle, link))
    except (pynvml.NVMLError_InvalidArgument, pynvml.NVMLError_NotSupported):
        # The GPU has fewer.
        return False
