"""Which GPU each rank has, and whether GPUs of a node address each other's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comms.cuda.errors import explained
from comms.errors import RuntimeFailure
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

#: Status of CUDA where peers have been enabled before, as opening a handle may have done.
_ALREADY_ENABLED = 704


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as one process sees it.

    Attributes:
        index: its number in this process, which CUDA_VISIBLE_DEVICES renumbers.
        uuid: the same in every process; a slice of a GPU has its own.
        pci: address on the PCI bus, for example `0000:3b:00.0`.
        name: the product's.
        capability: compute capability, for example `(9, 0)`.
        num_sms: SMs.
        memory_bytes: all of its memory.
    """

    index: int
    uuid: str
    pci: str
    name: str
    capability: tuple[int, int]
    num_sms: int
    memory_bytes: int

    @property
    def arch(self) -> str:
        """What code for it is compiled for, for example `sm_90`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True, slots=True)
class Seen:
    """The GPUs that a rank sees.

    Attributes:
        rank: who.
        host: number of its host.
        uuids: the GPUs, in this rank's order.
    """

    rank: int
    host: int
    uuids: tuple[str, ...]


def visible_cards() -> list[Card]:
    """Return the GPUs of this process, in its order.

    Raises:
        RuntimeFailure: there is no driver, none that fits or no GPU, or a package is missing.
    """
    with explained("GPUs cannot be looked for"):
        from cuda.core import Device
        from cupy.cuda import runtime

        return [
            Card(
                index=index,
                # CuPy cuts the UUID of a device's properties at its first zero byte.
                uuid=Device(index).uuid,
                pci=runtime.deviceGetPCIBusId(index).lower(),
                name=properties["name"].decode(),
                capability=(properties["major"], properties["minor"]),
                num_sms=properties["multiProcessorCount"],
                memory_bytes=properties["totalGlobalMem"],
            )
            for index in range(runtime.getDeviceCount())
            for properties in [runtime.getDeviceProperties(index)]
        ]


def use_card(card: Card) -> None:
    """Let this thread's calls mean a GPU; each thread begins with the first one.

    Raises:
        RuntimeFailure: the GPU cannot be used.
    """
    with explained(f"GPU {card.index} ({card.name}) cannot be used"):
        from cupy.cuda import runtime

        runtime.setDevice(card.index)
        # The first call of all makes the context.
        runtime.free(0)


def choose_cards(ranks: Ranks) -> list[Card]:
    """Return the GPU of every rank, numbered as that rank numbers it; collective.

    Raises:
        RuntimeFailure: some rank has none, or two have the same; in the same words on all ranks.
    """
    found = together(ranks, lambda: (ranks.host, visible_cards()))
    seen = [
        Seen(rank, host, tuple(card.uuid for card in cards))
        for rank, (host, cards) in enumerate(found)
    ]
    indices = assign(seen)
    return [cards[index] for (_, cards), index in zip(found, indices, strict=True)]


def assign(seen: Sequence[Seen]) -> list[int]:
    """Return the number of each rank's GPU among those that it sees.

    The n-th of the ranks of a host that see the same GPUs takes the n-th of them, whether a
    launcher has shown each rank its own or all ranks all of them.

    Raises:
        RuntimeFailure: there is no GPU for some rank, or not one for each.
    """
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    owners: dict[str, int] = {}
    indices = []
    for row in seen:
        group = alike.setdefault((row.host, row.uuids), [])
        index = len(group)
        group.append(row.rank)
        if not row.uuids:
            raise RuntimeFailure(
                f"rank {row.rank} sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES there"
            )
        uuid = row.uuids[index % len(row.uuids)]
        if uuid in owners:
            raise RuntimeFailure(
                f"ranks {owners[uuid]} and {row.rank} would have the same GPU ({uuid}), of "
                f"{len(row.uuids)} that rank {row.rank} sees (CUDA_VISIBLE_DEVICES): start a rank "
                "a GPU, or several ranks in one process (--ranks-per-card)"
            )
        owners[uuid] = row.rank
        indices.append(index)
    return indices


def peer_matrix(cards: Sequence[Card]) -> list[list[bool]]:
    """Return whether the GPU of a row reads and writes the memory of a column's; of this process.

    Raises:
        RuntimeFailure: CUDA does not tell.
    """
    with explained("peer access cannot be asked for"):
        from cupy.cuda import runtime

        return [
            [one is two or bool(runtime.deviceCanAccessPeer(one.index, two.index)) for two in cards]
            for one in cards
        ]


def enable_peers(ranks: Ranks, cards: Sequence[Card]) -> list[list[bool | None]]:
    """Let the GPUs of every node address each other's memory; collective.

    Args:
        ranks: the world.
        cards: GPU of each rank, as `choose_cards` returns them.

    Returns:
        Whether the rank of a row reaches that of a column, None on other nodes.

    Raises:
        RuntimeFailure: two GPUs of a node cannot, or a rank does not see another's GPU; in the same
            words on all ranks.
    """
    hosts = ranks.comm.allgather(ranks.host)
    matrix = together(ranks, lambda: _enable(ranks.rank, cards, hosts))
    for one, row in enumerate(matrix):
        for two, reaches in enumerate(row):
            if reaches is False:
                raise RuntimeFailure(
                    f"rank {one} cannot address the memory of rank {two} on the same node "
                    f"({cards[one].name} {cards[one].pci} and {cards[two].name} {cards[two].pci}): "
                    "use GPUs that are linked by NVLink or below one PCIe root (nvidia-smi topo -m)"
                )
    return matrix


def _enable(rank: int, cards: Sequence[Card], hosts: Sequence[int]) -> list[bool | None]:
    with explained(f"peer access of rank {rank}"):
        from cupy.cuda import runtime

        own = {card.uuid: card.index for card in visible_cards()}
        row: list[bool | None] = []
        for peer, card in enumerate(cards):
            if hosts[peer] != hosts[rank]:
                row.append(None)
            elif peer == rank:
                row.append(True)
            elif card.uuid not in own:
                raise RuntimeFailure(
                    f"rank {rank} does not see the GPU of rank {peer} ({card.name} {card.pci}) on "
                    "the same node, whose memory it is to map: let every rank see all GPUs of its "
                    "node (CUDA_VISIBLE_DEVICES, or Slurm's --gpus-per-task)"
                )
            else:
                row.append(bool(runtime.deviceCanAccessPeer(cards[rank].index, own[card.uuid])))
                if row[-1]:
                    _enable_one(own[card.uuid])
        return row


def _enable_one(index: int) -> None:
    from cupy.cuda import runtime

    try:
        runtime.deviceEnablePeerAccess(index)
    except runtime.CUDARuntimeError as error:
        if error.status != _ALREADY_ENABLED:
            raise
