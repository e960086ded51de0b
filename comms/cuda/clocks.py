"""A GPU's clock and what slows it, by NVML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comms.cuda.cards import Card

#: What slows a GPU below the clock that it was set to, by NVML's bits.
_SLOWING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature, by hardware",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Clock:
    """A GPU at one moment.

    Attributes:
        sm_mhz: clock of its SMs.
        reasons: why that is not the highest one, bits of NVML.
    """

    sm_mhz: int
    reasons: int

    @property
    def is_slowed(self) -> bool:
        """Whether something slows it that a measurement should not have in it."""
        return any(self.reasons & bit for bit in _SLOWING)


class Clocks:
    """Looks at a GPU.

    Attributes:
        why_not: why it cannot, None where it can.
    """

    def __init__(self, card: Card) -> None:
        """Find the GPU; slices of one, and GPUs that others administer, may have no clock."""
        self.why_not: str | None = None
        self._handle: Any = None
        try:
            import pynvml
        except ImportError:
            self.why_not = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(card.pci)
        except pynvml.NVMLError as error:
            self.why_not = str(error)

    def look(self) -> Clock | None:
        """Return the clock now, None where it cannot be seen."""
        if self._handle is None:
            return None
        import pynvml

        try:
            return Clock(
                int(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)),
                int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)),
            )
        except pynvml.NVMLError as error:
            self._handle = None
            self.why_not = str(error)
            return None


def names_of(reasons: int) -> list[str]:
    """Return what slows a GPU, in words."""
    return [name for bit, name in _SLOWING.items() if reasons & bit]
