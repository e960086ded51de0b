"""What device `cuda` refuses before anything is compiled, or when it knows whom ranks reach."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from comms.cuda.cards import Card
from comms.fabric import Fabric
from comms.failed import DoesNotFit
from kernels.protocol import HostLaunch, Protocol

if TYPE_CHECKING:
    from comms.cuda.windows import Memory
    from comms.mpi.ranks import Ranks


def other_gpu(fabric: Fabric, card: Card) -> str | None:
    """Return why a fabric's bounds are not those of a GPU, or None."""
    if not fabric.capped or re.search(rf"\b{fabric.name}\b", card.name, re.IGNORECASE):
        return None
    return (
        f"the bounds of fabric {fabric.name} are not those of {card.name}: leave out --fabric, or "
        "give its own"
    )


def refuse_graph(protocol: Protocol) -> None:
    """Refuse a graph of a protocol whose host acts between kernels.

    Raises:
        DoesNotFit: it does.
    """
    steps = (*protocol.launches("dispatch", "fresh"), *protocol.launches("combine", "fresh"))
    hosts = [step.name for step in steps if isinstance(step, HostLaunch)]
    if hosts:
        raise DoesNotFit(
            f"a graph holds no calls of the host between kernels ({', '.join(hosts)}): leave out "
            "--graph"
        )


def refuse_ipc(protocol: Protocol, ranks: Ranks, memory: Memory) -> None:
    """Refuse what needs the memory of other hosts where CUDA IPC maps that of one.

    Raises:
        DoesNotFit: the protocol's kernels write to other nodes' memory.
    """
    if ranks.num_hosts > 1 and memory == "ipc":
        refuse_apart(protocol)


def refuse_apart(protocol: Protocol) -> None:
    """Refuse a protocol on nodes that do not address each other's memory.

    Raises:
        DoesNotFit: its kernels do.
    """
    if protocol.library is None:
        raise DoesNotFit(
            f"kernels of {protocol.kernel}/{protocol.variant} write to other nodes' memory "
            "themselves, which needs all GPUs in one NVLink domain (--memory nccl): use "
            "two_hop/staged on clusters"
        )
