"""A device of this machine's CPUs for kernels of CUDA C++: lanes of real memory, and no times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import host_world
import numpy as np
import numpy.typing as npt
from host_build import Mutation, Sanitizer
from host_world import BulkTimes

from bench.cases import CaseSpec
from bench.check import CheckResult
from bench.session import Session
from comms.memory import Layout
from kernels.devices.base import Device, World, user_regions
from kernels.isa.cxx_kernel import cxx_source
from kernels.protocol import Form, KernelLaunch, Op, Protocol

_ABORT = "abort"
#: Bytes that a warp has for bulk copies: the least of any block.
_ARCH = {True: "sm_90", False: "sm_80"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a world of lanes is run.

    Attributes:
        has_bulk: whether the GPU that it stands for copies in bulk.
        bulk_times: when bulk copies happen.
        seed: order of turns.
        sanitizer: what watches it.
        limit_s: longest wait.
        mutations: mistakes in headers or in `.cu` files, by the file's name.
        python_ranks: not used here.
    """

    has_bulk: bool = True
    bulk_times: BulkTimes = "at_any_time"
    seed: int = 1
    sanitizer: Sanitizer = "none"
    limit_s: float = 20.0
    mutation: Mutation | None = None


class HostFailure(Exception):
    """A launch did what a GPU does not allow, or did not end."""


class _HostWindows:
    """Windows of all ranks at equal distance."""

    def __init__(self, layout: Layout, world_size: int) -> None:
        self.layout = layout
        self.memory = host_world.windows(world_size, layout.window_bytes)

    def base(self, rank: int) -> int:
        return host_world.address_of(self.memory, rank)

    def word(self, rank: int, offset: int) -> int:
        return int(self.memory[rank, offset : offset + 8].view(np.int64)[0])

    def view(self, rank: int, name: str, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        region = self.layout[name]
        return self.memory[rank, region.offset : region.offset + region.num_bytes].view(dtype)


class HostDevice(Device):
    """All ranks of a world, each launch a program of its own."""

    windows: _HostWindows

    def __init__(self, protocol: Protocol, world: World, settings: Settings) -> None:
        super().__init__(protocol, world)
        self.ranks = range(world.shape.world_size)
        self._settings_of_run = settings
        regions = {**user_regions(protocol, world), **protocol.regions(world.shape), _ABORT: 8}
        self.windows = _HostWindows(Layout(regions), world.shape.world_size)

    def run(self, ops: Sequence[Op], form: Form) -> None:
        """Run operations in order.

        Raises:
            HostFailure: a launch failed.
        """
        for op in ops:
            for launch in self.protocol.launches(op, form):
                assert isinstance(launch, KernelLaunch)
                self._run(launch, form)

    def _run(self, launch: KernelLaunch, form: Form) -> None:
        how = self._settings_of_run
        shape = self.world.shape
        num_warps = launch.warps(shape)
        source = cxx_source(
            launch, num_warps, arch=_ARCH[how.has_bulk], entry="entry", is_virtual=False
        )
        mutation = how.mutation
        if mutation is not None and mutation.header.endswith(".cu"):
            if launch.cxx is not None and launch.cxx.file.name == mutation.header:
                assert source.count(mutation.old) == 1, f"{mutation.old!r} must occur once"
                source = source.replace(mutation.old, mutation.new)
            mutation = None
        params = [
            [0, 0, *self._params(launch, rank, form, shape.num_sms, num_warps)]
            for rank in self.ranks
        ]
        outcome = host_world.run(
            source,
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
            mutation=mutation,
        )
        if not outcome.is_clean:
            raise HostFailure(f"{launch.name}: {outcome}")


def run_case(spec: CaseSpec, protocol: Protocol, settings: Settings) -> CheckResult:
    """Run dispatch and combine twice, on new data each, in each form; return what is wrong.

    Raises:
        HostFailure: a launch failed.
    """
    devices: list[HostDevice] = []

    def open_device(protocol: Protocol, world: World) -> Device:
        devices.append(HostDevice(protocol, world, settings))
        return devices[-1]

    session = Session(spec, protocol, open_device)
    (device,) = devices
    late = np.zeros(spec.world_size, np.int64)
    check = CheckResult()
    for form in (*get_args(Form), "fresh"):
        inputs = session.load(["dispatch", "combine"], form)
        device.run(["dispatch", "combine"], form)
        check += session.check(inputs, late)
    return check
