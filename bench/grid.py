"""The axes of a run, and what they are on each device where nobody says otherwise."""

from __future__ import annotations

from typing import Literal

import msgspec

from bench.records.record import AxisValue, Form, Impl
from comms.errors import UsageError
from comms.fabric import CrossRail, End

#: Devices that exist, with what they are for.
DEVICES = {
    "sim": "predictions in virtual time, anywhere",
    "cpu": "the same kernels in real memory, an MPI process per rank, on real clocks",
    "cuda": "the same kernels on GPUs, an MPI process per rank, or all ranks on one GPU",
}


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Axes of a run: each combination of the values is one spec.

    Attributes:
        kernel: names, `name/variant`, or `path/to/file.py:name` for a kernel that is not in the
            project; all kernels where empty.
        cross_rail: replaces the profile's own where given.
        hidden: replaces the preset's where given, `num_experts` and `num_topk` likewise.
        impl: what kernels are made of; baselines are what they are.
        knob: `NAME=VALUE` for knobs of kernels, which those that have them take.
        prefix: elements of each row that really move, None for all; the default is that of
            `kernels.rows`, which is not imported here because it loads NumPy.
    """

    kernel: tuple[str, ...] = ()
    form: tuple[Form, ...] = ("fresh",)
    device: str = "sim"
    fabric: tuple[str, ...] = ("h800",)
    cross_rail: CrossRail | None = None
    sm_copy: tuple[End, ...] = ("mid",)
    nodes: tuple[int, ...] = (1,)
    ranks_per_node: tuple[int, ...] = (8,)
    preset: tuple[str, ...] = ("deepseek-v3",)
    tokens: tuple[int, ...] = (4096,)
    hidden: int | None = None
    num_experts: int | None = None
    num_topk: int | None = None
    dispatch_dtype: tuple[Literal["fp8", "bf16"], ...] = ("fp8",)
    routing: tuple[str, ...] = ("uniform",)
    masked_ratio: float = 0.0
    seed: int = 0
    num_sms: tuple[int, ...] = (8,)
    skew_us: float = 0.0
    prefix: int | None = 192
    knob: tuple[str, ...] = ()
    impl: tuple[Impl, ...] = ("numba",)

    @property
    def world_size(self) -> int:
        """Ranks of the largest world of the grid."""
        return max(self.nodes) * max(self.ranks_per_node)

    def axes(self) -> dict[str, AxisValue | list[AxisValue]]:
        """Return the axes as plain values, for the record."""
        return msgspec.convert(msgspec.to_builtins(self), dict[str, AxisValue | list[AxisValue]])


#: What a run on a device is where nobody says otherwise. On real clocks nothing caps, rows move
#: whole, and the baseline is the library itself and not the model of another; on `cpu` an SM is a
#: thread. Of the baselines' variants these are the two that rows are compared with.
DEFAULTS = {
    "sim": Grid(kernel=("direct", "nccl_like/dedup", "nccl_like/selection")),
    "cpu": Grid(
        device="cpu",
        kernel=("direct", "mpi/dedup", "mpi/selection"),
        fabric=("uncapped",),
        ranks_per_node=(2,),
        num_sms=(1,),
        prefix=None,
    ),
    "cuda": Grid(
        device="cuda",
        kernel=("direct", "nccl/dedup", "nccl/selection"),
        fabric=("uncapped",),
        num_sms=(20,),
        prefix=None,
    ),
}


def default_grid(device: str) -> Grid:
    """Return the grid that flags replace axes of.

    Raises:
        UsageError: there is no such device.
    """
    if device not in DEFAULTS:
        raise UsageError(
            f"no device {device!r} in this version; choose one of {', '.join(DEVICES)}"
        )
    return DEFAULTS[device]
