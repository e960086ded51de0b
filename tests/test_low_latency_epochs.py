"""Epochs of the low-latency pair that overlap: two buffers are enough, and one is not.

The harness lets all ranks end an operation before the next, so here launches follow each other with
no host between them, a small kernel keeps what each epoch left and changes the inputs of the next.
One rank is slow: in dispatch every row goes to it, in combine it has most of the tokens, and few
warps receive, so its peers are an epoch ahead of it while it still reads its slots.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from mutants import Mutation, install_mutant

from bench import harness
from comms.fabric import load_fabric
from kernels import isa
from kernels.devices.base import World
from kernels.devices.sim import SimDevice
from kernels.low_latency import FUSED
from kernels.protocol import Form, KernelLaunch, Op, Protocol
from kernels.shape import Shape

RANKS, EXPERTS, TOPK, EPOCHS = 4, 16, 4, 5
#: Rank 0 is the slow one.
DISPATCH_TOKENS, COMBINE_TOKENS = np.array([40, 40, 40, 40]), np.array([160, 6, 6, 6])
CAPACITY = 712


class KeepParams(NamedTuple):
    """Parameters of both kernels below; fields named after regions are offsets."""

    rank: int
    num_tokens: int
    capacity: int
    x_row_bytes: int
    y_row_bytes: int
    recv_x_addr: int
    out_addr: int
    dispatch_epoch: int
    combine_epoch: int
    kept: int
    x: int
    y: int


def keep_dispatched(p: KeepParams) -> None:
    """Keep the head of each received row of this epoch, then change the next one's tokens."""
    epoch = isa.load(p.dispatch_epoch) - 1
    for row in range(p.capacity):
        word = isa.load_i64(p.recv_x_addr + row * p.x_row_bytes)
        isa.store(p.rank, p.kept + 8 * (epoch * p.capacity + row), word)
    for token in range(p.num_tokens):
        isa.add(p.rank, p.x + token * p.x_row_bytes, 1)


def keep_combined(p: KeepParams) -> None:
    """Keep the head of each sum of this epoch, then change the next one's expert outputs."""
    epoch = isa.load(p.combine_epoch) - 1
    for token in range(p.num_tokens):
        word = isa.load_i64(p.out_addr + token * p.y_row_bytes)
        isa.store(p.rank, p.kept + 8 * (epoch * p.capacity + token), word)
    for row in range(p.capacity):
        # BF16 1.0 becomes 2.0, 4.0, ...
        isa.add(p.rank, p.y + row * p.y_row_bytes, 0x0080_0080_0080_0080)


def _keeping(protocol: Protocol) -> Protocol:
    def launches(op: Op, form: Form) -> tuple[Any, ...]:
        kernel = keep_dispatched if op == "dispatch" else keep_combined
        keep = KernelLaunch(f"keep_{op}", kernel, KeepParams, 1)
        return (*protocol.launches(op, form), keep)

    return replace(
        protocol,
        launches=launches,
        regions=lambda shape: {**protocol.regions(shape), "kept": 8 * EPOCHS * CAPACITY},
        settings=lambda shape: {**protocol.settings(shape), "capacity": CAPACITY},
    )


class Found(NamedTuple):
    """What each epoch left, int64 `(EPOCHS, CAPACITY)` by rank, and what it should have."""

    kept: list[npt.NDArray[np.int64]]
    expected: list[npt.NDArray[np.int64]]

    def wrong(self) -> list[int]:
        """Return the ranks that kept something wrong."""
        return [
            rank
            for rank in range(RANKS)
            if not np.array_equal(
                self.kept[rank][:, : self.expected[rank].shape[1]], self.expected[rank]
            )
        ]


def _device(
    protocol: Protocol, num_tokens: npt.NDArray[np.int64], num_experts: int
) -> tuple[SimDevice, list[npt.NDArray[np.int32]]]:
    """Return a device whose tokens select among the first experts, and their selections."""
    shape = Shape(
        num_nodes=1,
        ranks_per_node=RANKS,
        num_tokens=int(num_tokens.max()),
        hidden=128,
        num_experts=EXPERTS,
        num_topk=TOPK,
        num_sms=1,
        knobs=(("send_warps", 8), ("recv_warps", 2)),
    )
    world = World(
        shape=shape,
        fabric=load_fabric("h800"),
        num_tokens=num_tokens,
        capacity_rows=CAPACITY,
        skew_ps=np.zeros(RANKS, np.int64),
    )
    device = SimDevice(_keeping(protocol), world)
    rng = np.random.default_rng(4)
    routing = []
    for rank, count in enumerate(num_tokens):
        idx = np.array([rng.permutation(num_experts)[:TOPK] for _ in range(count)], np.int32)
        device.view(rank, "topk_idx", np.int32)[: idx.size] = idx.ravel()
        device.view(rank, "topk_weights", np.float32)[: idx.size] = 1.0
        device.view(rank, "x")[:] = 0
        heads = device.view(rank, "x", np.int64).reshape(-1, shape.dispatch_row.stride_bytes // 8)
        heads[:, 0] = 1000 * np.arange(len(heads)) + 1_000_000 * rank
        routing.append(idx)
    return device, routing


def dispatches(protocol: Protocol) -> Found:
    """Run dispatch again and again."""
    device, routing = _device(protocol, DISPATCH_TOKENS, EXPERTS // RANKS)
    device.run(["dispatch"] * EPOCHS, "fresh")
    expected = []
    for rank in range(RANKS):
        heads = [
            1_000_000 * source + 1000 * token
            for expert in range(4 * rank, 4 * rank + 4)
            for source in range(RANKS)
            for token in np.flatnonzero((routing[source] == expert).any(axis=1))
        ]
        expected.append(np.array(heads, np.int64) + np.arange(EPOCHS)[:, None])
    return Found(_kept(device), expected)


def combines(protocol: Protocol) -> Found:
    """Run dispatch once, and then combine again and again."""
    device, _ = _device(protocol, COMBINE_TOKENS, EXPERTS)
    for rank in range(RANKS):
        device.view(rank, "y", np.uint16)[:] = 0x3F80
    device.run(["dispatch", *["combine"] * EPOCHS], "fresh")
    expected = []
    for count in COMBINE_TOKENS:
        # Four rows of 2^epoch: 2^(epoch + 2).
        bits = 0x3F80 + 0x80 * (np.arange(EPOCHS, dtype=np.int64)[:, None] + 2)
        expected.append(np.tile(bits * 0x0001_0001_0001_0001, (1, count)))
    return Found(_kept(device), expected)


def _kept(device: SimDevice) -> list[npt.NDArray[np.int64]]:
    views = [device.view(rank, "kept", np.int64) for rank in range(RANKS)]
    return [view[: EPOCHS * CAPACITY].reshape(EPOCHS, CAPACITY) for view in views]


@pytest.mark.parametrize("run", [dispatches, combines])
def test_epochs_that_overlap_do_not_meet_in_a_slot(run: Callable[[Protocol], Found]) -> None:
    assert run(FUSED).wrong() == []


@pytest.mark.parametrize(
    ("run", "mutation"),
    [
        (dispatches, ("dispatch", "return ((epoch & 1) * p", "return (0 * p")),
        (dispatches, ("dispatch", "1) >> 1) * EPOCH)", "1) >> 1) * EPOCH - EPOCH)")),
        (combines, ("combine", "p.combine_slots + (epoch & 1) *", "p.combine_slots + 0 *")),
    ],
    ids=["one buffer of dispatch", "counts of an epoch before", "one buffer of combine"],
)
def test_one_buffer_is_noticed(
    run: Callable[[Protocol], Found],
    mutation: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, old, new = mutation
    full = importlib.import_module(f"kernels.low_latency.{module}").__name__
    install_mutant(FUSED, Mutation(full, old, new), monkeypatch)
    assert run(harness.find_protocol("low_latency", "fused")).wrong()
