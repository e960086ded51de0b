"""`ring_two_hop`: the DeepSeek-V3 / DeepEP V1 design between nodes, channels of two SMs.

The SM budget is fixed for a state: rings belong to channels.
"""

from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.ring_two_hop.combine import combine
from kernels.ring_two_hop.dispatch import dispatch
from kernels.ring_two_hop.knobs import KNOBS, refuses
from kernels.ring_two_hop.notify import NotifyParams, combine_notify, notify
from kernels.ring_two_hop.params import (
    COMBINE_WARPS,
    DISPATCH_WARPS,
    CombineParams,
    DispatchParams,
)
from kernels.ring_two_hop.regions import regions, settings


def _launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
    if op == "dispatch":
        return (
            KernelLaunch("notify", notify, NotifyParams, DISPATCH_WARPS),
            KernelLaunch("dispatch", dispatch, DispatchParams, DISPATCH_WARPS),
        )
    return (
        KernelLaunch("combine_notify", combine_notify, NotifyParams, DISPATCH_WARPS),
        KernelLaunch("combine", combine, CombineParams, COMBINE_WARPS),
    )


PROTOCOLS = (
    Protocol(
        kernel="ring_two_hop",
        variant="rail",
        summary="the DeepSeek-V3 design: senders, one copy per node over the rail, forwarders, "
        "rings over NVLink, receivers; combine adds inside each node first",
        regions=regions,
        launches=_launches,
        refuses=refuses,
        settings=settings,
        knobs=KNOBS,
        route="rail",
        hops=2,
    ),
)
