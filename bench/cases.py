"""What to run: one kernel at one point of the axes, and the name of its cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from bench.labels import kernel_label
from bench.records.record import (
    AxisValue,
    Caps,
    Case,
    Check,
    Form,
    Granularity,
    Impl,
    Op,
    Source,
    Status,
)
from comms.fabric import ONE_CARD, Fabric

if TYPE_CHECKING:
    from bench.workloads.workload import Workload
    from kernels.from_file import KernelFile
    from kernels.protocol import Protocol
    from kernels.shape import Shape


@dataclass(frozen=True, slots=True)
class CaseSpec:
    """One kernel at one point of the axes; it gives a case for each of its operations.

    Attributes:
        skew_us: how much later than the first rank the last one launches.
        source: the file that the kernel is from, None for a built-in one.
        knobs: names and values of the kernel's knobs that are not at their default, by name.
        impl: `"cupy"` for the kernel in CUDA C++.
    """

    kernel: str
    variant: str
    form: Form
    device: str
    fabric: Fabric
    nodes: int
    ranks_per_node: int
    workload: Workload
    num_sms: int
    skew_us: float = 0.0
    source: KernelFile | None = None
    knobs: tuple[tuple[str, int], ...] = ()
    impl: Impl = "numba"

    @property
    def world_size(self) -> int:
        """Ranks of the world."""
        return self.nodes * self.ranks_per_node

    @property
    def num_processes(self) -> int:
        """Processes that run it on real clocks: one a rank, or one for all on a GPU."""
        return 1 if self.fabric.name == ONE_CARD else self.world_size

    def protocol(self) -> Protocol:
        """Return the kernel."""
        from kernels.registry import find_protocol

        return find_protocol(self.kernel, self.variant, self.source, self.impl)

    def shape(self) -> Shape:
        """Return the sizes that the kernel may know.

        Raises:
            UsageError: no kernel could have these sizes.
        """
        from kernels.shape import Shape

        work = self.workload
        return Shape(
            num_nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            num_tokens=work.num_tokens,
            hidden=work.hidden,
            num_experts=work.num_experts,
            num_topk=work.num_topk,
            num_sms=self.num_sms,
            dispatch_dtype=work.dispatch_dtype,
            combine_dtype=work.combine_dtype,
            prefix=work.prefix,
            knobs=self.knobs,
        )

    def axes(self) -> dict[str, AxisValue]:
        """Return every axis by the name of its field in the record.

        A knob is an axis where it was turned, `knob_` before its name; `impl` where it was chosen.
        """
        work = self.workload
        return {
            "kernel": self.kernel,
            "variant": self.variant,
            "form": self.form,
            "device": self.device,
            "fabric": self.fabric.name,
            "cross_rail": self.fabric.cross_rail,
            "sm_copy": self.fabric.sm_end,
            "nodes": self.nodes,
            "world_size": self.world_size,
            "preset": work.preset,
            "num_tokens": work.num_tokens,
            "hidden": work.hidden,
            "num_experts": work.num_experts,
            "num_topk": work.num_topk,
            "dispatch_dtype": work.dispatch_dtype,
            "combine_dtype": work.combine_dtype,
            "routing": work.routing,
            "masked_ratio": work.masked_ratio,
            "seed": work.seed,
            "num_sms": self.num_sms,
            "skew_us": self.skew_us,
            "prefix": work.prefix,
            **({"impl": self.impl} if self.impl == "cupy" else {}),
            **{f"knob_{name}": value for name, value in self.knobs},
        }

    def case_id(self, op: Op) -> str:
        """Return the stable slug of the sorted axes and the operation.

        The file of a kernel is told by its path: what it said is in the case, not in its name.
        """
        axes = {**self.axes(), "op": op}
        if self.source:
            axes["source"] = f"{self.source.path}:{self.source.name}"
        return ",".join(f"{name}={_slug(axes[name])}" for name in sorted(axes))

    def kernel_label(self) -> str:
        """Return the name that tells the kernel from others, of other files too."""
        path = self.source.path if self.source else None
        return kernel_label(self.kernel, self.variant, path, self.impl)

    def label(self) -> str:
        """Return a short name for progress lines."""
        where = self.fabric.name if self.device == "sim" else self.device
        if self.fabric.name == ONE_CARD:
            where = f"{self.device} {ONE_CARD}"
        turned = "".join(f", {name}={value}" for name, value in self.knobs)
        return (
            f"{self.kernel_label()} {self.form} {self.num_sms} SMs, {where} "
            f"EP{self.world_size}, {self.workload.num_tokens} tokens{turned}"
        )


def blank_case(
    spec: CaseSpec,
    op: Op,
    status: Status,
    *,
    reason: str,
    impl: Impl,
    granularity: Granularity,
    knobs: Mapping[str, int] = MappingProxyType({}),
) -> Case:
    """Return the row of a case that was not timed; a timed one replaces what it knows.

    Args:
        spec: the point of the axes.
        op: the operation.
        status: anything but `"passed"`.
        reason: one sentence.
        impl: what the kernel is made of.
        granularity: whether it works per (token, rank) or per (token, selected expert).
        knobs: values of all knobs of the kernel.
    """
    caps = Caps(None, None)
    if spec.fabric.capped:
        fabric = spec.fabric
        caps = Caps(fabric.nvlink.payload_gbs.value, fabric.nic.payload_gbs.value)
    fields = {
        "case_id": spec.case_id(op),
        "op": op,
        "impl": impl,
        "fidelity": "predicted" if spec.device == "sim" else "measured",
        "granularity": granularity,
        "caps": caps,
        "status": status,
        "reason": reason,
        "check": Check(num_wrong=0, num_checked=0),
        "source": spec.source and Source(spec.source.path, spec.source.name, spec.source.sha256),
        "knobs": dict(knobs),
        "turned": [name for name, _ in spec.knobs],
        **spec.axes(),
    }
    return msgspec.convert(fields, Case)


def _slug(value: AxisValue) -> str:
    return "full" if value is None else quote(str(value), safe=":.")
