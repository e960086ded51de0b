"""A protocol's kernels for a GPU: compiled once a host, loaded, and seen to fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from comms.cuda.cards import Card
from comms.cuda.cubins import Cubin
from comms.cuda.modules import LoadedKernel
from comms.failed import DoesNotFit
from comms.mpi.together import together
from kernels import packing
from kernels.isa import cxx_kernel
from kernels.isa.bind import name_files
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

_OPS: tuple[Op, ...] = ("dispatch", "combine")
#: Kernels of the harness, beside those of a protocol.
MEET, STAMP = "_meet", "_stamp"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process's ranks run.

    Attributes:
        card: their GPU.
        num_ranks: ranks on it.
        is_virtual: whether they share one launch.
    """

    card: Card
    num_ranks: int
    is_virtual: bool

    def num_blocks(self, launch: KernelLaunch, shape: Shape) -> int:
        """Return the blocks of each rank."""
        if launch.sms == "comm":
            return shape.num_sms
        return max(min(self.card.num_sms // self.num_ranks, packing.MAX_SMS), 1)


def kernels_of(protocol: Protocol) -> dict[str, KernelLaunch]:
    """Return the kernels that a protocol launches, by their names."""
    return {
        step.name: step
        for op in _OPS
        for form in get_args(Form)
        for step in protocol.launches(op, form)
        if isinstance(step, KernelLaunch)
    }


def compile_for(
    protocol: Protocol, shape: Shape, place: Place, ranks: Ranks, *, line_info: bool
) -> dict[str, Cubin]:
    """Return machine code by the kernels' names; collective.

    Raises:
        UsageError: a kernel does not compile; in the same words on all ranks.
        RuntimeFailure: a compiler is missing or fails.
    """
    launches = kernels_of(protocol)
    for launch in launches.values():
        # Kernels that are found compiled have not been bound here, and reports name their lines.
        name_files(launch.kernel)
        if launch.cxx is not None:
            cxx_kernel.name_files(launch.cxx)

    def build() -> dict[str, Cubin]:
        from kernels.isa.cuda_kernel import compile_kernel
        from kernels.isa.cuda_meet import compile_meeting

        cubins = compile_meeting(place.card.arch, is_virtual=place.is_virtual)
        for name, launch in launches.items():
            cubins[name] = compile_kernel(
                launch,
                launch.warps(shape),
                arch=place.card.arch,
                is_virtual=place.is_virtual,
                line_info=line_info,
            )
        return cubins

    return first_then_all(ranks, build)


def first_then_all(ranks: Ranks, build: Callable[[], dict[str, Cubin]]) -> dict[str, Cubin]:
    """Build on the first rank of each host; the others find it on the disk then; collective.

    Hosts may share a disk or not: files appear on it whole, whoever of several writes them.
    """
    found: dict[str, Cubin] = {}

    def keep() -> None:
        found.update(build())

    together(ranks, lambda: keep() if ranks.local_rank == 0 else None)
    together(ranks, lambda: None if ranks.local_rank == 0 else keep())
    return found


def load_all(
    cubins: dict[str, Cubin], protocol: Protocol, shape: Shape, place: Place, ranks: Ranks
) -> dict[str, LoadedKernel]:
    """Load code on this rank's GPU, and see that all blocks of a launch fit; collective.

    Raises:
        DoesNotFit: they do not, on some rank; in the same words on all ranks.
        RuntimeFailure: the GPU does not take the code.
    """
    loaded: dict[str, LoadedKernel] = {}
    launches = kernels_of(protocol)

    def load() -> None:
        loaded.update({name: LoadedKernel(cubin) for name, cubin in cubins.items()})

    together(ranks, load)

    def look() -> str | None:
        if shape.num_sms > packing.MAX_SMS:
            return f"num_sms must be at most {packing.MAX_SMS}, got {shape.num_sms}"
        blocks = {name: place.num_blocks(launch, shape) for name, launch in launches.items()}
        reasons = (
            kernel.refuses(blocks.get(name, 1) * place.num_ranks) for name, kernel in loaded.items()
        )
        return next((reason for reason in reasons if reason is not None), None)

    refuse(together(ranks, look))
    return loaded


def refuse(reasons: Sequence[str | None]) -> None:
    """Refuse on all ranks what one of them cannot do.

    Raises:
        DoesNotFit: there is a reason.
    """
    for reason in reasons:
        if reason is not None:
            raise DoesNotFit(reason)
