"""Kernels of CUDA C++, run by this machine's CPUs against the oracle, bit for bit."""

from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np
import pytest
from host_build import Mutation
from host_device import OPS, HostFailure, How, run_case
from host_world import TIMED_OUT

from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import Grid
from bench.session import Session
from comms.cuda.machine import NO_FLAG
from kernels.devices.sim import SimDevice
from kernels.protocol import Form
from kernels.registry import find_protocol

KERNELS = ("direct/pull", "direct/push", "low_latency/fused", "low_latency/split")
#: Few warps, so that a CPU has few lanes to run; a knob's kernel takes it.
KNOBS = {
    "direct": {"dispatch_warps": 2, "pull_warps": 2, "push_warps": 1, "reduce_warps": 1},
    "low_latency": {"send_warps": 1, "recv_warps": 2},
}
#: Rows of 384 bytes, and rows that pass through stages in several chunks and rounds.
SHORT = {"hidden": 192}
LONG = {"hidden": 5120}
#: Three stages of 3 KiB: rows of 5 and 10 KiB pass through them in chunks.
SMALL_AREA = 3 * 3072 + 512
CASES = {
    "no tokens": Grid(tokens=(0,), ranks_per_node=(2,), **SHORT),
    "1 token": Grid(tokens=(1,), ranks_per_node=(2,), **LONG),
    "7 tokens": Grid(tokens=(7,), ranks_per_node=(3,), dispatch_dtype=("bf16",), **LONG),
    "hot rank": Grid(tokens=(7,), ranks_per_node=(4,), routing=("hot:2",), **SHORT),
    "masked": Grid(tokens=(9,), ranks_per_node=(2,), masked_ratio=0.5, **SHORT),
    "all masked": Grid(tokens=(3,), ranks_per_node=(2,), masked_ratio=1.0, **SHORT),
    "2 nodes": Grid(tokens=(5,), nodes=(2,), ranks_per_node=(2,), **LONG),
}
#: A world for mistakes, and for those who look for them: the oracle, or what watches the lanes.
WATCHED = Grid(tokens=(5,), ranks_per_node=(3,), **LONG)
_PLAIN = How(bulk_times="at_waits", area_bytes=SMALL_AREA, limit_s=2.0)
_TSAN = replace(_PLAIN, bulk_times="at_any_time", sanitizer="thread", limit_s=10.0)
ONE_NODE_ONLY = ("direct/pull",)


def spec_of(kernel: str, case: Grid, **knobs: int) -> CaseSpec:
    """Return the spec of a kernel: 8 experts, 3 selections of a token."""
    axes = {"prefix": None, "num_experts": 8, "num_topk": 3, "num_sms": (2,)}
    (spec,) = expand([msgspec.structs.replace(case, kernel=(kernel,), **axes)])
    turned = {**KNOBS[spec.kernel], **knobs}
    return replace(spec, knobs=tuple(turned.items()))


def run(kernel: str, case: Grid, how: How, **knobs: int) -> str | None:
    """Return what is wrong with a run, or None."""
    spec = spec_of(kernel, case, **knobs)
    protocol = find_protocol(spec.kernel, spec.variant, None, "cupy")
    check, _ = run_case(spec, protocol, how)
    return check.first


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (kernel, name)
        for kernel in KERNELS
        for name in CASES
        if name != "2 nodes" or kernel not in ONE_NODE_ONLY
    ],
)
def test_every_case_is_right(kernel: str, name: str) -> None:
    assert run(kernel, CASES[name], How(area_bytes=SMALL_AREA)) is None


@pytest.mark.parametrize("name", ["no tokens", "7 tokens", "masked"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gpus_without_bulk_copies_do_the_same(kernel: str, name: str) -> None:
    assert run(kernel, CASES[name], How(has_bulk=False)) is None


@pytest.mark.parametrize("bulk_times", ["at_waits", "at_once"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_bulk_copies_may_happen_at_any_time(kernel: str, bulk_times: str) -> None:
    how = replace(_PLAIN, bulk_times=bulk_times)
    assert run(kernel, WATCHED, how) is None


def test_chunks_of_rows_are_told_together() -> None:
    how = How(area_bytes=SMALL_AREA)
    assert run("direct/push", CASES["hot rank"], how, chunk_rows=2) is None
    assert run("low_latency/fused", CASES["hot rank"], how, near_batch=2) is None


@pytest.mark.parametrize("kernel", ["direct/push", "low_latency/fused"])
def test_memory_is_ordered(kernel: str) -> None:
    assert run(kernel, WATCHED, _TSAN) is None


#: What combine and cached runs find, and what peers' kernels wait for, whoever wrote it.
KEPT = {
    "direct/push": (
        *("send_num", "bases", "dispatch_epoch", "combine_epoch", "counted", "hello", "done"),
        *("ready", "taken", "progress", "stage", "recv_counts"),
    ),
    "direct/pull": ("send_num", "bases", "hello", "done", "ready", "read", "recv_counts"),
    "low_latency/fused": (
        *("counted", "arrived", "returned", "sent_counts", "dispatch_epoch", "combine_epoch"),
        *("begins", "totals", "send_index", "back_rows", "back_slots", "slot_entries", "slots"),
        "combine_slots",
    ),
}


@pytest.mark.parametrize("kernel", KEPT)
def test_windows_hold_what_kernels_of_python_leave(kernel: str) -> None:
    spec = spec_of(kernel, CASES["masked"])
    numba = find_protocol(spec.kernel, spec.variant)
    session = Session(spec, numba, SimDevice)
    device = session._device
    assert isinstance(device, SimDevice)
    for form in (*get_args(Form), "fresh"):
        session.load(OPS, form)
        device.run(list(OPS), form)
    cupy = find_protocol(spec.kernel, spec.variant, None, "cupy")
    check, host = run_case(spec, cupy, How())
    assert check.first is None
    for rank in device.ranks:
        for name in KEPT[kernel]:
            left, wanted = host.view(rank, name), device.view(rank, name)
            assert np.array_equal(left, wanted), (rank, name)


#: What rank 1 keeps from rank 0 or from itself, and what the first wait says that is in vain: the
#: cause, and the region, the index of the word in it, what it was and what it should have been.
KEPT_BACK = {
    "counts": (
        Mutation(
            "dispatch.cu",
            "      add_relaxed(at(peer, p.counted",
            "      if (p.rank == 0 || peer == 1 || local != 2) add_relaxed(at(peer, p.counted",
        ),
        ("counted", 8 + 2 * 2 + 1, 0, 2**32),
    ),
    "rows": (
        Mutation(
            "dispatch.cu",
            "  word.end(copies);",
            "  if (p.rank == 1 && stream.peer == 0 && stream.part == 1) return copies.finish();\n"
            "  word.end(copies);",
        ),
        ("arrived", 2 + 1, 0, 1),
    ),
    "bulk copies": (
        Mutation(
            "cuh/stages.cuh",
            "    bulk_load(at_place(place), source, num_bytes, barrier(place));\n",
            "",
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", KEPT_BACK)
def test_a_wait_in_vain_says_what_it_waits_for(name: str) -> None:
    mutation, word = KEPT_BACK[name]
    how = How(bulk_times="at_waits", limit_s=2.0, mutation=mutation)
    case = Grid(tokens=(20,), ranks_per_node=(2,), **SHORT)
    with pytest.raises(HostFailure) as caught:
        run("low_latency/fused", case, how, send_warps=2, recv_warps=1, near_batch=32)
    report = caught.value.outcome.report
    assert report.get("cause") == TIMED_OUT, caught.value
    if word is None:
        assert report["offset"] == NO_FLAG
        return
    region, index, seen, wanted = word
    assert report["rank"] == 0
    assert report["offset"] == caught.value.layout[region].offset + 8 * index
    assert (report["seen"], report["wanted"]) == (seen, wanted)


#: Mistakes, and the least that sees them.
MUTANTS = {
    "no grant": (
        "direct/push",
        Mutation("dispatch.cu", "if (warp == 0) wait_all(p.hello", "if (false) wait_all(p.hello"),
        _PLAIN,
    ),
    "rows are not awaited": (
        "direct/push",
        Mutation("combine_push.cu", "is_any_late(lane_id() < num_rows_,", "is_any_late(false,"),
        _PLAIN,
    ),
    "flags do not lag": (
        "direct/push",
        Mutation("cuh/copies.cuh", "      bulk_wait<MOST_UNWRITTEN>();\n", ""),
        _TSAN,
    ),
    "no release": (
        "direct/push",
        Mutation(
            "cuh/copies.cuh",
            "release_system();\n    add_relaxed(flag.address, flag.value);",
            "add_relaxed(flag.address, flag.value);",
        ),
        _TSAN,
    ),
    "wrong parity": (
        "direct/push",
        Mutation("cuh/stages.cuh", "stage = 0, parity ^= 1;", "stage = 0;"),
        _PLAIN,
    ),
    "stages are loaded while they are stored": (
        "direct/push",
        Mutation("cuh/fanout.cuh", "      bulk_wait_read<1>();\n", ""),
        _PLAIN,
    ),
    "rows are left behind": (
        "direct/push",
        Mutation("cuh/fanout.cuh", "void finish() { bulk_wait_all(); }", "void finish() {}"),
        _PLAIN,
    ),
    "stages are loaded while they are read": (
        "low_latency/fused",
        Mutation("cuh/sums.cuh", "      fence_stages_to_bulk();\n", ""),
        _TSAN,
    ),
    "stages are loaded while counters are there": (
        "low_latency/fused",
        Mutation("dispatch.cu", "    copies.stages_used();\n", ""),
        _TSAN,
    ),
    "rows are received before they are there": (
        "low_latency/fused",
        Mutation("dispatch.cu", "awaits && seen >= wanted", "awaits"),
        _PLAIN,
    ),
    "counts are not awaited": (
        "low_latency/fused",
        Mutation("dispatch.cu", "late = ballot(word < wanted)", "late = ballot(word < 0)"),
        _PLAIN,
    ),
    "receivers do not meet": (
        "low_latency/fused",
        Mutation(
            "dispatch.cu",
            "  await_counts(p, team, first, last, begins, epoch);\n"
            "  group_sync(1, team.size, EP_HERE);\n",
            "  await_counts(p, team, first, last, begins, epoch);\n",
        ),
        _TSAN,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_are_seen(name: str) -> None:
    kernel, mutation, how = MUTANTS[name]
    try:
        wrong = run(kernel, WATCHED, replace(how, mutation=mutation))
    except HostFailure:
        return
    assert wrong is not None
