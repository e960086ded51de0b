"""Whether the nodes of a world are the hosts that its ranks are on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

_CONSECUTIVE = (
    "launch consecutive ranks on each host (srun --distribution=block, mpirun --map-by slot)"
)


def refuse_hosts(hosts: Sequence[int], nodes: int, ranks_per_node: int) -> str | None:
    """Return why a world cannot run on its hosts, with what to give or how to launch; or None.

    Nodes of a world on one host are virtual.

    Args:
        hosts: number of each rank's host, of all ranks that were launched.
        nodes: of the world, which is of the first ranks.
        ranks_per_node: ranks of each.
    """
    own = hosts[: nodes * ranks_per_node]
    if len(set(own)) == 1:
        return None
    sizes = _sizes(own)
    if len(sizes) > len(set(own)):
        again = next(
            rank
            for rank in range(1, len(own))
            if own[rank] != own[rank - 1] and own[rank] in own[:rank]
        )
        return (
            f"rank {again} is on the host of rank {own.index(own[again])} and rank {again - 1} is "
            f"not: {_CONSECUTIVE}"
        )
    if sizes == [ranks_per_node] * nodes:
        return None
    found = f"its {len(own)} ranks are {_words(sizes)} on {len(sizes)} hosts, not {ranks_per_node}"
    found = f"{found} on each of {nodes}" if nodes > 1 else f"{found} on one"
    launched = _sizes(hosts)
    if len(launched) > len(set(hosts)):
        return f"{found}: {_CONSECUTIVE}"
    if len(set(launched)) > 1:
        return f"{found}: launch as many ranks on each host (srun --ntasks-per-node)"
    return (
        f"{found}: give --nodes {len(launched)} --ranks-per-node {launched[0]}, or with --nodes 1 "
        f"at most --ranks-per-node {launched[0]}"
    )


def _sizes(hosts: Sequence[int]) -> list[int]:
    """Return the lengths of the runs of ranks that are on one host."""
    return [len(list(run)) for _, run in groupby(hosts)]


def _words(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))
