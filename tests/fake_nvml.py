"""Stands in for NVML."""

import sys
from types import ModuleType

import pytest
from fake_ranks import this_process


class NVMLError(Exception):
    """NVML's error."""


def install_nvml(patch: pytest.MonkeyPatch, clocks: dict[int, list[tuple[int, int]]]) -> None:
    """Let `pynvml` tell clocks and reasons by rank; one that has none may not look."""
    pynvml = ModuleType("pynvml")

    def handle(pci: str) -> int:
        if this_process().rank not in clocks:
            raise NVMLError("Insufficient Permissions")
        return this_process().rank

    def now(rank: int) -> tuple[int, int]:
        told = clocks[rank]
        return told[0]

    def reasons(rank: int) -> int:
        told = clocks[rank]
        return (told.pop(0) if len(told) > 1 else told[0])[1]

    pynvml.__dict__.update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=handle,
        nvmlDeviceGetClockInfo=lambda handle, type: now(handle)[0],
        nvmlDeviceGetCurrentClocksEventReasons=reasons,
    )
    patch.setitem(sys.modules, "pynvml", pynvml)
