"""How often clocks are read, and when a wait is over."""

from typing import Literal

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How cases on real clocks are timed; devices in virtual time need none of it.

    Attributes:
        num_iters: timed iterations; with none the first, checked run is the only sample.
        num_warmup: iterations before them.
        check: `"ends"` checks a run before the iterations and the last of them; `"each"` gives
            every iteration new data and checks what it leaves.
        timeout_s: longest wait of a kernel or of a rank.
        memory: how ranks on GPUs map each other's memory, by CUDA IPC or by windows of NCCL.
        graph: whether launches are replayed from a CUDA graph.
        profile: whether each kernel is launched once, with what profilers want.
    """

    num_iters: int = 30
    num_warmup: int = 5
    check: Literal["ends", "each"] = "ends"
    timeout_s: float = 60.0
    memory: Literal["ipc", "nccl"] = "ipc"
    graph: bool = False
    profile: bool = False
