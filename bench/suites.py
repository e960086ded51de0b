"""The named suites: grids that are run together."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bench.grid import DEFAULTS, Grid
from comms.errors import UsageError
from comms.fabric import ONE_CARD, End


@dataclass(frozen=True, slots=True)
class Suite:
    """Grids that are run together, and one line about them."""

    about: str
    grids: tuple[Grid, ...]


#: SMs that the library takes where nobody limits it: `kernels.nccl_like.constants.LIBRARY_SMS`,
#: which is not imported here because its package loads Numba.
LIBRARY_SMS = 32


def _worlds(*, tokens_over_nodes: int, sm_copy: tuple[End, ...] = ("mid",)) -> tuple[Grid, ...]:
    """Return EP8 in one NVLink domain and EP16 over two nodes.

    The baseline also runs at its own choice of SMs, which is what rows are compared with.
    """
    many = (tokens_over_nodes,)
    library = (LIBRARY_SMS,)
    return (
        Grid(kernel=("direct",), num_sms=(8, 16), sm_copy=sm_copy),
        Grid(kernel=("nccl_like/dedup",), num_sms=(16, *library), sm_copy=sm_copy),
        Grid(kernel=("nccl_like/selection",), num_sms=library, sm_copy=sm_copy),
        Grid(
            nodes=(2,),
            kernel=("direct", "two_hop"),
            tokens=many,
            num_sms=(16,),
            sm_copy=sm_copy,
        ),
        Grid(
            nodes=(2,),
            kernel=("nccl_like/dedup",),
            tokens=many,
            num_sms=(16, *library),
            sm_copy=sm_copy,
        ),
        Grid(
            nodes=(2,),
            kernel=("nccl_like/selection",),
            tokens=many,
            num_sms=library,
            sm_copy=sm_copy,
        ),
    )


def _on(nodes: int, *grids: Grid) -> tuple[Grid, ...]:
    """Return the grids with a world of `nodes` nodes."""
    return tuple(msgspec.structs.replace(grid, nodes=(nodes,)) for grid in grids)


#: On real clocks: full rows of a model that fits any machine, a rank for each core of a small one
#: and twice as many.
_ON_CPU = tuple(
    msgspec.structs.replace(DEFAULTS["cpu"], ranks_per_node=(ranks,), tokens=(1024,))
    for ranks in (2, 4)
)


#: A GPU runs kernels as they are in Python, and those that stand in CUDA C++ as well.
_ON_GPUS = msgspec.structs.replace(DEFAULTS["cuda"], impl=("numba", "cupy"))


def _on_one_card(ranks: int, **axes: object) -> Grid:
    grid = msgspec.structs.replace(
        _ON_GPUS, fabric=(ONE_CARD,), ranks_per_node=(ranks,), num_sms=(8,)
    )
    return msgspec.structs.replace(grid, **axes)


_OURS = ("direct", "ring", "low_latency")
_OURS_OVER_NODES = ("two_hop", "ring_two_hop")
#: Few tokens in both forms for every kernel, then what moves many.
_ON_ONE_CARD = (
    *(
        _on_one_card(ranks, kernel=_OURS, tokens=(128,), form=("fresh", "cached"))
        for ranks in (2, 4, 8)
    ),
    *(
        _on_one_card(
            ranks, nodes=(2,), kernel=_OURS_OVER_NODES, tokens=(128,), form=("fresh", "cached")
        )
        for ranks in (2, 4)
    ),
    *(
        _on_one_card(ranks, kernel=("direct",), tokens=(4096,), num_sms=(4, 8, 16))
        for ranks in (2, 4, 8)
    ),
)


def _on_cards(nodes: int, *kernels: str) -> tuple[Grid, ...]:
    """Return kernels on GPUs of their own, and NCCL with their SMs and with as many as it wants."""
    cards = msgspec.structs.replace(_ON_GPUS, nodes=(nodes,), form=("fresh", "cached"))
    library = (LIBRARY_SMS,)
    return (
        msgspec.structs.replace(cards, kernel=kernels, num_sms=(8, 16, 20)),
        msgspec.structs.replace(cards, kernel=("nccl/dedup",), num_sms=(8, 16, *library)),
        msgspec.structs.replace(cards, kernel=("nccl/selection",), num_sms=library),
    )


SUITES = {
    "main": Suite(
        "H800, DeepSeek-V3: EP8 with 4096 tokens per rank, EP16 (2 nodes x 8) with 1024; then 2 "
        "and 4 ranks of this machine's cores",
        (*_worlds(tokens_over_nodes=1024), *_ON_CPU),
    ),
    "quick": Suite(
        "H800, DeepSeek-V3: EP8 and EP16 with 128 tokens per rank and 8 SMs",
        tuple(
            Grid(nodes=(nodes,), tokens=(128,), kernel=kernel, num_sms=num_sms)
            for nodes in (1, 2)
            for kernel, num_sms in (
                (("direct",), (8,)),
                (("nccl_like/dedup", "nccl_like/selection"), (8, LIBRARY_SMS)),
            )
        ),
    ),
    "cpu": Suite("2 and 4 ranks of this machine's cores, 1024 tokens per rank", _ON_CPU),
    "one-card": Suite(
        "one GPU: every kernel right on 2, 4 and 8 ranks that share it, and what rows cost in its "
        "own memory beside memcpy; none of it is a figure of links",
        _ON_ONE_CARD,
    ),
    "cards": Suite(
        "8 GPUs of a node: every prefill kernel, and NCCL with as many SMs and with its own choice",
        _on_cards(1, "direct", "ring"),
    ),
    "cards-two-nodes": Suite(
        "2 nodes of 8 GPUs: every prefill kernel that goes between nodes, and NCCL, as in cards",
        _on_cards(2, "direct/push", "two_hop", "ring_two_hop"),
    ),
    "reference": Suite(
        "main with 4096 tokens everywhere, over the range of an SM's copy rate: results/reference",
        _worlds(tokens_over_nodes=4096, sm_copy=("mid", "low", "high")),
    ),
    "family": Suite(
        "H800, DeepSeek-V3, 4096 tokens per rank: every prefill kernel at EP8, EP16 and EP32, over "
        "budgets of SMs: results/reference",
        tuple(
            grid
            for nodes in (1, 2, 4)
            for grid in _on(
                nodes,
                Grid(
                    kernel=("direct", "ring", "ring_two_hop", "two_hop"),
                    num_sms=(8, 12, 16, 20, 24),
                ),
                Grid(
                    kernel=("nccl_like/dedup", "nccl_like/selection"), num_sms=(8, 20, LIBRARY_SMS)
                ),
            )
        ),
    ),
    "family-ep64": Suite(
        "the kernels of family that reach 8 nodes, at EP64: results/reference",
        _on(
            8,
            Grid(kernel=("direct/push", "ring_two_hop", "two_hop"), num_sms=(8, 20, 24)),
            Grid(kernel=("nccl_like/dedup",), num_sms=(8, 20, LIBRARY_SMS)),
            Grid(kernel=("nccl_like/selection",), num_sms=(LIBRARY_SMS,)),
        ),
    ),
}


def suite(name: str) -> Suite:
    """Return the suite called `name`.

    Raises:
        UsageError: there is no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"no suite {name!r}; choose one of {', '.join(SUITES)}")
    return SUITES[name]
