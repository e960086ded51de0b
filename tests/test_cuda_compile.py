"""Machine code of every kernel for sm_90 and sm_80: registers, accesses, what orders memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from sass_for_tests import compiles

from bench.asm.examine import Asked, examine, report_of
from bench.asm.report import KernelReport, RowLoop
from bench.asm.targets import Target, targets_of_all
from kernels.isa import cuda_kernel

ARCHES = ("sm_90", "sm_80")
#: Bytes that a warp of a block has under way: 16 of each lane, eight loads at a time or four.
MANY_WARPS, IN_FLIGHT_BYTES, IN_FLIGHT_BYTES_OF_MANY = 24, 4096, 2048
#: Most instructions for 16 bytes: a load and a store are two; a sum of eight rows of BF16 in FP32
#: has eight loads, 64 conversions and 64 additions for eight times as many bytes as it stores.
MOST_OF_COPIES, MOST_OF_SUMS = 5.25, 33.0

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Expected:
    """What a launch's machine code must be.

    Attributes:
        moves: what it does to rows.
        by_bulk: rows that the copy engine moves, where there is one: `loads` into shared memory and
            `stores` from it.
        publishes: whether others see what it wrote before it ends.
        acquires: whether it sees what others write before it ends.
        fans_out: whether a row that was loaded once is stored several times.
    """

    moves: frozenset[str] = frozenset()
    by_bulk: frozenset[str] = frozenset()
    publishes: bool = False
    acquires: bool = False
    fans_out: bool = False


def _expected(moves: str = "", by_bulk: str = "", flags: str = "", fans_out: str = "") -> Expected:
    return Expected(
        frozenset(moves.split()),
        frozenset(by_bulk.split()),
        publishes="publishes" in flags,
        acquires="acquires" in flags,
        fans_out=bool(fans_out),
    )


_BOTH = "publishes acquires"
_ENGINE = "loads stores"
EXPECTED: dict[Key, Expected] = {
    ("direct/push", "numba", "dispatch"): _expected("copies", "", _BOTH),
    ("direct/push", "numba", "combine"): _expected("copies sums", "", _BOTH),
    ("direct/push", "cupy", "dispatch"): _expected("copies", _ENGINE, _BOTH, "fans out"),
    ("direct/push", "cupy", "combine"): _expected("copies sums", _ENGINE, _BOTH),
    ("direct/pull", "numba", "dispatch"): _expected("copies", "", _BOTH),
    ("direct/pull", "numba", "combine"): _expected("sums", "", _BOTH),
    ("direct/pull", "cupy", "dispatch"): _expected("copies", _ENGINE, _BOTH, "fans out"),
    ("direct/pull", "cupy", "combine"): _expected("sums", "loads", _BOTH),
    ("two_hop/rail", "numba", "dispatch"): _expected("copies", _ENGINE, _BOTH),
    ("two_hop/rail", "numba", "combine"): _expected("copies sums", "", _BOTH),
    ("two_hop/staged", "numba", "count"): _expected(),
    ("two_hop/staged", "numba", "totals"): _expected(),
    ("two_hop/staged", "numba", "pack"): _expected("copies"),
    ("two_hop/staged", "numba", "forward"): _expected("copies", _ENGINE, _BOTH),
    ("two_hop/staged", "numba", "sum_nodes"): _expected("sums", "", _BOTH),
    ("two_hop/staged", "numba", "reduce"): _expected("sums"),
    ("ring/chunked", "numba", "notify"): _expected("copies", "", _BOTH),
    ("ring/chunked", "numba", "dispatch"): _expected("copies", _ENGINE, _BOTH),
    ("ring/chunked", "numba", "combine"): _expected("copies sums", "", _BOTH),
    ("ring_two_hop/rail", "numba", "notify"): _expected("copies", "", _BOTH),
    ("ring_two_hop/rail", "numba", "dispatch"): _expected("copies", _ENGINE, _BOTH),
    ("ring_two_hop/rail", "numba", "combine_notify"): _expected("", "", _BOTH),
    ("ring_two_hop/rail", "numba", "combine"): _expected("copies sums", _ENGINE, _BOTH),
    ("low_latency/fused", "numba", "dispatch"): _expected("copies", _ENGINE, _BOTH),
    ("low_latency/fused", "numba", "combine"): _expected("copies sums", _ENGINE, _BOTH),
    ("low_latency/fused", "cupy", "dispatch"): _expected("copies", _ENGINE, _BOTH),
    ("low_latency/fused", "cupy", "combine"): _expected("copies sums", _ENGINE, _BOTH),
    ("low_latency/split", "numba", "dispatch_send"): _expected("copies", _ENGINE, "publishes"),
    ("low_latency/split", "numba", "dispatch_recv"): _expected("copies", _ENGINE, "acquires"),
    ("low_latency/split", "numba", "combine_send"): _expected("copies", _ENGINE, "publishes"),
    ("low_latency/split", "numba", "combine_recv"): _expected("sums", "", "acquires"),
    ("low_latency/split", "cupy", "dispatch_send"): _expected("copies", _ENGINE, "publishes"),
    ("low_latency/split", "cupy", "dispatch_recv"): _expected("copies", _ENGINE, "acquires"),
    ("low_latency/split", "cupy", "combine_send"): _expected("copies", _ENGINE, "publishes"),
    ("low_latency/split", "cupy", "combine_recv"): _expected("sums", "loads", "acquires"),
}


def key_of(told: Target | KernelReport) -> Key:
    launch = told.launch if isinstance(told, KernelReport) else told.launch.name
    return told.kernel, told.impl, launch


@cache
def examined(arch: str) -> dict[Key, KernelReport]:
    """Return what is told of all kernels, which are compiled once."""
    found = examine(Asked(targets_of_all(), (arch,)))
    assert not found.skipped
    return {key_of(report): report for report in found.kernels}


def faults(report: KernelReport, expected: Expected) -> list[str]:
    """Return what is wrong with a launch's machine code."""
    bulk = expected.by_bulk if report.arch == "sm_90" else frozenset()
    checks: Sequence[Callable[[KernelReport, Expected, frozenset[str]], Iterator[str]]] = (
        _faults_of_memory,
        _faults_of_moves,
        _faults_of_bulk,
        _faults_of_order,
    )
    return [fault for check in checks for fault in check(report, expected, bulk)]


def _faults_of_memory(
    report: KernelReport, expected: Expected, bulk: frozenset[str]
) -> Iterator[str]:
    if report.spill_bytes or {"LDL", "STL"} & set(report.widths):
        yield f"spills {report.spill_bytes} bytes"
    if report.blocks_per_sm == 0:
        yield "no block fits on an SM"
    if report.num_read_only:
        yield f"{report.num_read_only} loads through the read-only path"


def _faults_of_moves(
    report: KernelReport, expected: Expected, bulk: frozenset[str]
) -> Iterator[str]:
    for moves in sorted(expected.moves):
        # What the copy engine has loaded is added from shared memory.
        if bulk and (report.impl == "cupy" or moves == "copies"):
            continue
        loops = [loop for loop in report.loops if (loop.mechanism, loop.moves) == ("ldst", moves)]
        if not loops:
            yield f"no loop {moves} rows by accesses of 128 bits"
        elif not any(_is_well_made(loop, report, expected) for loop in loops):
            told = [(each.instructions_per_16b, each.bytes_in_flight) for each in loops]
            yield f"{moves}: {told} instructions for 16 bytes and bytes in flight"


def _is_well_made(loop: RowLoop, report: KernelReport, expected: Expected) -> bool:
    most = MOST_OF_COPIES if loop.moves == "copies" else MOST_OF_SUMS
    if loop.instructions_per_16b is None or loop.instructions_per_16b > most:
        return False
    few = report.num_warps <= MANY_WARPS
    wanted = (IN_FLIGHT_BYTES if few else IN_FLIGHT_BYTES_OF_MANY) * report.num_warps
    return expected.fans_out or loop.bytes_in_flight >= wanted


def _faults_of_bulk(
    report: KernelReport, expected: Expected, bulk: frozenset[str]
) -> Iterator[str]:
    opcodes = {"loads": "UBLKCP.S.G", "stores": "UBLKCP.G.S"}
    for way, opcode in opcodes.items():
        if (opcode in report.bulk) != (way in bulk):
            yield f"bulk copies are {report.bulk or 'none'}, {way} {way in bulk}"
    if not bulk:
        if report.mbarriers:
            yield "barriers of bulk copies, of which there are none"
        return
    if not any(name.startswith("SYNCS.PHASECHK") for name in report.mbarriers):
        yield "no bulk copy is awaited"
    if "FENCE.VIEW.ASYNC.S" not in report.fences:
        yield "nothing orders the stages before bulk copies"
    if "stores" in bulk and "UTMACMDFLUSH" not in report.bulk:
        yield "no store of the copy engine is awaited"


def _faults_of_order(
    report: KernelReport, expected: Expected, bulk: frozenset[str]
) -> Iterator[str]:
    if ("MEMBAR.ALL.SYS" in report.fences) != expected.publishes:
        yield f"fences are {report.fences}, publishes {expected.publishes}"
    flags = {"RED.STRONG.SYS", "REDG.STRONG.SYS", "STG.STRONG.SYS"}
    if expected.publishes and not flags & set(report.strong):
        yield "no flag is written"
    # A load that acquires makes L1 forget what it holds; the abort word is read without.
    acquires = report.strong.get("LDG.STRONG.SYS", 0) > 1 and "CCTL.IVALL" in report.fences
    if expected.acquires and not acquires:
        yield "no flag is acquired"
    if not expected.publishes and not expected.acquires and report.fences:
        yield f"fences are {report.fences}, for nothing"


@compiles()
def test_every_launch_is_expected_to_be_something() -> None:
    assert sorted(map(key_of, targets_of_all())) == sorted(EXPECTED)


@compiles()
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("key", EXPECTED, ids=" ".join)
def test_machine_code_is_as_written(key: Key, arch: str) -> None:
    report = examined(arch)[key]
    assert faults(report, EXPECTED[key]) == []


@dataclass(frozen=True)
class Mistake:
    """A text of a header, under `kernels/isa`, and what stands there instead."""

    header: str
    old: str
    new: str


_NO_FENCE = Mistake("cuda.cuh", 'asm volatile("fence.release.sys;" ::: "memory");', "")


@compiles()
@pytest.mark.parametrize(
    ("key", "mistake", "told"),
    [
        pytest.param(
            ("direct/push", "numba", "dispatch"),
            Mistake("cuda.cuh", '"@p ld.global.L1::no_allocate.v4', '"@p ld.global.nc.v4'),
            "loads through the read-only path",
            id="rows by the read-only path",
        ),
        pytest.param(
            ("direct/push", "numba", "dispatch"),
            Mistake("cuh/rows.cuh", "constexpr int IN_FLIGHT = 8;", "constexpr int IN_FLIGHT = 4;"),
            "bytes in flight",
            id="half the loads in flight",
        ),
        pytest.param(
            ("direct/push", "numba", "dispatch"), _NO_FENCE, "publishes True", id="no fence"
        ),
        pytest.param(
            ("low_latency/split", "numba", "combine_recv"),
            Mistake("cuda.cuh", "ld.acquire.sys.global", "ld.relaxed.sys.global"),
            "no flag is acquired",
            id="flags that acquire nothing",
        ),
        pytest.param(
            ("ring/chunked", "numba", "dispatch"),
            Mistake("cuh/exports.cuh", "ep::copy_row_bulk(rank,", "ep::copy_row(rank,"),
            "bulk copies are none, loads True",
            id="no bulk copies",
        ),
        pytest.param(
            ("two_hop/rail", "numba", "combine"),
            Mistake("cuh/rows.cuh", "constexpr int IN_FLIGHT = 4;", "constexpr int IN_FLIGHT = 8;"),
            "spills",
            id="more loads in flight than registers",
        ),
    ],
)
def test_mistakes_are_noticed(
    key: Key, mistake: Mistake, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isa = tmp_path / "isa"
    shutil.copytree(cuda_kernel._ISA, isa, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (isa / mistake.header).read_text()
    assert text.count(mistake.old) == 1, f"{mistake.old!r} must occur once"
    (isa / mistake.header).write_text(text.replace(mistake.old, mistake.new))
    monkeypatch.setattr(cuda_kernel, "_ISA", isa)
    monkeypatch.setattr(cuda_kernel, "kept", lambda sources, options, build: build())
    (target,) = [target for target in targets_of_all() if key_of(target) == key]
    cubin = cuda_kernel.compile_kernel(target.launch, target.num_warps, arch="sm_90")
    assert any(told in fault for fault in faults(report_of(target, cubin, None), EXPECTED[key]))
