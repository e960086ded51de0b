"""A device of this machine's CPUs for kernels of CUDA C++: lanes in real memory, and no times."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import host_world
import numpy as np
import numpy.typing as npt
from host_build import Mutation, Sanitizer
from host_world import BulkTimes, Outcome

from bench.cases import CaseSpec
from bench.check import CheckResult
from bench.session import Session
from bench.traffic.bounds import HalfOp
from comms.memory import Layout
from kernels.devices.base import Device, World, user_regions
from kernels.isa.cxx_kernel import cxx_source
from kernels.protocol import Form, KernelLaunch, Protocol

_ABORT = "abort"
OPS: tuple[HalfOp, ...] = ("dispatch", "combine")


@dataclass(frozen=True, slots=True)
class How:
    """How a world of lanes is run.

    Attributes:
        has_bulk: whether the GPU that it stands for copies in bulk.
        area_bytes: shared memory of a warp instead of what a launch gives it.
        bulk_times: when bulk copies happen.
        seed: order of turns.
        sanitizer: what watches it.
        limit_s: longest wait.
        mutation: a mistake in a header, or in the `.cu` file of a launch.
    """

    has_bulk: bool = True
    area_bytes: int | None = None
    bulk_times: BulkTimes = "at_any_time"
    seed: int = 1
    sanitizer: Sanitizer = "none"
    limit_s: float = 20.0
    mutation: Mutation | None = None


class HostFailure(Exception):
    """A launch did what a GPU does not allow, or did not end.

    Attributes:
        outcome: of the launch.
        layout: of the windows that a report's offset is in.
    """

    def __init__(self, launch: str, outcome: Outcome, layout: Layout) -> None:
        super().__init__(f"{launch}: {outcome}")
        self.outcome = outcome
        self.layout = layout


class HostWindows:
    """Windows of all ranks at equal distance."""

    def __init__(self, layout: Layout, world_size: int) -> None:
        self.layout = layout
        self.memory = host_world.windows(world_size, layout.window_bytes)

    def base(self, rank: int) -> int:
        """Return the address of a rank's window."""
        return host_world.address_of(self.memory, rank)

    def word(self, rank: int, offset: int) -> int:
        """Return the int64 word at an offset of a rank's window."""
        return int(self.memory[rank, offset : offset + 8].view(np.int64)[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return a region of a rank as a flat array that shares its memory."""
        region = self.layout[name]
        return self.memory[rank, region.offset : region.offset + region.num_bytes].view(dtype)


class HostDevice(Device):
    """All ranks of a world, each launch a program of its own."""

    windows: HostWindows

    def __init__(self, protocol: Protocol, world: World, how: How) -> None:
        super().__init__(protocol, world)
        self.ranks = range(world.shape.world_size)
        self._how = how
        regions = {**user_regions(protocol, world), **protocol.regions(world.shape), _ABORT: 8}
        self.windows = HostWindows(Layout(regions), world.shape.world_size)

    def run(self, ops: Sequence[HalfOp], form: Form) -> None:
        """Run operations in order.

        Raises:
            HostFailure: a launch failed.
        """
        for op in ops:
            for launch in self.protocol.launches(op, form):
                assert isinstance(launch, KernelLaunch)
                self._run(launch, form)

    def _run(self, launch: KernelLaunch, form: Form) -> None:
        how, shape = self._how, self.world.shape
        num_warps = launch.warps(shape)
        mutates_header = how.mutation is not None and how.mutation.header.endswith(".cuh")
        # The entry takes the stride and an address for several ranks on a card first.
        params = [
            [0, 0, *self._params(launch, rank, form, shape.num_sms, num_warps)]
            for rank in self.ranks
        ]
        outcome = host_world.run(
            self._source(launch, num_warps),
            "entry",
            num_blocks=shape.num_sms,
            num_warps=num_warps,
            params=params,
            windows=self.windows.memory,
            ranks_per_node=shape.ranks_per_node,
            abort_offset=self.windows.layout[_ABORT].offset,
            limit_s=how.limit_s,
            seed=how.seed,
            bulk_times=how.bulk_times,
            defines=() if how.has_bulk else ("EP_HOST_NO_BULK",),
            sanitizer=how.sanitizer,
            mutation=how.mutation if mutates_header else None,
        )
        if not outcome.is_clean:
            raise HostFailure(launch.name, outcome, self.windows.layout)

    def _source(self, launch: KernelLaunch, num_warps: int) -> str:
        how = self._how
        arch = "sm_90" if how.has_bulk else "sm_80"
        source = cxx_source(launch, num_warps, arch=arch, entry="entry", is_virtual=False)
        if how.has_bulk and how.area_bytes is not None:
            source = re.sub(r"(?<=EP_AREA_BYTES )\d+", str(how.area_bytes), source)
        mutation = how.mutation
        if mutation is None or launch.cxx is None or launch.cxx.file.name != mutation.header:
            return source
        assert source.count(mutation.old) == 1, f"{mutation.old!r} must occur once"
        return source.replace(mutation.old, mutation.new)


def run_case(spec: CaseSpec, protocol: Protocol, how: How) -> tuple[CheckResult, HostDevice]:
    """Run dispatch and combine, on new data each time: fresh, cached and fresh again.

    Returns:
        What is wrong with the outputs, and the device with what the kernels left.

    Raises:
        HostFailure: a launch failed.
    """
    devices: list[HostDevice] = []

    def open_device(protocol: Protocol, world: World) -> Device:
        devices.append(HostDevice(protocol, world, how))
        return devices[-1]

    session = Session(spec, protocol, open_device)
    (device,) = devices
    late = np.zeros(spec.world_size, np.int64)
    check = CheckResult()
    for form in (*get_args(Form), "fresh"):
        inputs = session.load(OPS, form)
        device.run(OPS, form)
        check += session.check(inputs, late)
    return check, device
