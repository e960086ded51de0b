"""How a GPU is linked, as the driver's management library tells."""

from __future__ import annotations

from dataclasses import dataclass

from comms.cuda.cards import Card
from comms.errors import RuntimeFailure


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a GPU.

    Attributes:
        num_nvlinks: NVLinks that are up.
        nvlink_version: their version, 0 where there are none.
        pcie_generation: of the link as it is trained now, which may be slower when idle.
        pcie_lanes: likewise.
    """

    num_nvlinks: int
    nvlink_version: int
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
            nvlink_version=int(pynvml.nvmlDeviceGetNvLinkVersion(handle, up[0])) if up else 0,
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


def _is_up(handle: object, link: int) -> bool:
    import pynvml

    try:
        return bool(pynvml.nvmlDeviceGetNvLinkState(handle, link))
    except (pynvml.NVMLError_InvalidArgument, pynvml.NVMLError_NotSupported):
        # The GPU has fewer.
        return False
