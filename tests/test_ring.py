"""`ring` where the shared cases do not look: even SMs, small rings, many ranks, its mistakes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_cases import CASES, KernelCase, write_few_tokens
from mutants import Mutation, install_mutant

from bench import harness
from bench.grid import Grid
from bench.records.record import Case, Form
from kernels.protocol import Protocol
from kernels.ring import PROTOCOLS, regions, settings
from kernels.shape import Shape

(RING,) = PROTOCOLS
_ODD = {
    name: case.where_it_runs("ring")
    for name, case in CASES.items()
    if case.grid.nodes == (1,) and case.grid.num_sms[0] % 2
}
_NOTIFY, _DISPATCH, _COMBINE = (
    f"kernels.ring.{name}" for name in ("notify", "dispatch", "combine")
)
#: More rows than a stream's ring has slots, on 4 ranks.
_EVEN = KernelCase(Grid(tokens=(96,), ranks_per_node=(4,), num_sms=(2,)))

RunCase = Callable[..., list[Case]]


def with_rings(chunk_rows: int, ring_rows: int) -> Protocol:
    """Return the protocol with other chunks and rings, in both directions."""
    values = (chunk_rows, ring_rows, chunk_rows, ring_rows)
    knobs = tuple(replace(knob, default=n) for knob, n in zip(RING.knobs, values, strict=True))
    (chunk, ring, back_chunk, back_ring) = knobs
    assert (chunk.name, back_ring.name) == ("chunk_rows", "combine_ring_rows")

    def turned(shape: Shape) -> Shape:
        return replace(shape, knobs=tuple((knob.name, knob.of(shape)) for knob in knobs))

    return replace(
        RING,
        knobs=knobs,
        regions=lambda shape: regions(turned(shape)),
        settings=lambda shape: settings(turned(shape)),
        refuses=lambda shape, op, *, cross_rail: RING.refuses(
            turned(shape), op, cross_rail=cross_rail
        ),
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCase:
    """Run a case with a protocol, or with a mutant of it, and return its rows."""

    def run_case(
        case: KernelCase,
        protocol: Protocol = RING,
        form: Form = "fresh",
        mutation: Mutation | None = None,
    ) -> list[Case]:
        if mutation is None:
            monkeypatch.setattr(harness, "find_protocol", lambda *_: protocol)
        else:
            install_mutant(protocol, mutation, monkeypatch)
        return harness.run_spec(case.spec("ring", "chunked", form, tmp_path), lambda *_: None)

    return run_case


def assert_right(rows: list[Case]) -> None:
    for row in rows:
        assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op


@pytest.mark.parametrize("name", _ODD)
def test_the_cases_of_odd_sms_on_even_ones(name: str, run: RunCase) -> None:
    case = _ODD[name]
    for form in case.forms:
        rows = run(case, form=form)
        assert_right(rows)
        if case.num_rows is not None:
            assert rows[0].check.num_checked == case.num_rows


@pytest.mark.parametrize(("chunk_rows", "ring_rows"), [(1, 2), (3, 4), (2, 7)])
@pytest.mark.parametrize(
    "case",
    [
        _EVEN,
        KernelCase(Grid(tokens=(70,), ranks_per_node=(1,), num_sms=(2,))),
        KernelCase(Grid(tokens=(33,), ranks_per_node=(3,), num_sms=(4,), routing=("hot:3",))),
        KernelCase(Grid(tokens=(60,), num_sms=(2,), preset=("nemotron-3-super",), skew_us=60.0)),
        KernelCase(Grid(tokens=(16,), num_sms=(2,)), write_routing=write_few_tokens),
    ],
    ids=["4 ranks", "1 rank", "hot", "top-22, skewed", "ranks without tokens"],
)
def test_small_rings(case: KernelCase, chunk_rows: int, ring_rows: int, run: RunCase) -> None:
    for form in case.forms:
        assert_right(run(case, with_rings(chunk_rows, ring_rows), form))


@pytest.mark.parametrize("num_ranks", [7, 13, 24])
def test_as_many_ranks_as_a_block_has_warps(num_ranks: int, run: RunCase) -> None:
    case = KernelCase(Grid(tokens=(20,), ranks_per_node=(num_ranks,), num_sms=(4,)))
    assert_right(run(case))


@pytest.mark.parametrize(
    ("grid", "protocol", "reason"),
    [
        (Grid(num_sms=(3,)), RING, "num_sms must be even, got 3"),
        (Grid(nodes=(2,)), RING, "one node only"),
        (Grid(ranks_per_node=(25,)), RING, "at most 24 ranks, got 25"),
        (Grid(), with_rings(4, 4), "chunk_rows must be less than ring_rows, got 4 and 4"),
    ],
)
def test_what_it_refuses(grid: Grid, protocol: Protocol, reason: str, run: RunCase) -> None:
    for row in run(KernelCase(grid), protocol):
        assert row.status == "skipped"
        assert reason in str(row.reason)


def test_defaults_are_those_published_for_the_nearest_world() -> None:
    def found(world_size: int) -> list[int]:
        shape = Shape(1, world_size, 64, 7168, 256, 8, num_sms=2)
        return [knob.of(shape) for knob in RING.knobs]

    assert found(2) == [24, 256, 10, 256]
    assert found(4) == [6, 256, 9, 256]
    assert found(8) == found(24) == [6, 256, 4, 256]


@pytest.mark.parametrize(
    ("mutation", "op"),
    [
        (Mutation(_DISPATCH, "isa.wait_ge(p.tail + 8 * stream, base + chunk_end)", "pass"), 0),
        (
            Mutation(
                _DISPATCH,
                "isa.wait_ge(head, room_for(base, num_sent, p.chunk_rows, p.ring_rows))",
                "pass",
            ),
            0,
        ),
        (Mutation(_DISPATCH, "            sync_group(dest, group_warps)\n", ""), 0),
        (Mutation(_DISPATCH, "base + batch_end)", "base + batch_end + p.ring_rows)"), 0),
        (Mutation(_NOTIFY, "            base += total\n", ""), 0),
        (
            Mutation(
                _DISPATCH, "(p.bases_addr + 4 * source) + begin", "(p.bases_addr + 4 * source)"
            ),
            0,
        ),
        (
            Mutation(
                _COMBINE, "isa.wait_ge(p.back_tail + 8 * stream, base + position + 1)", "pass"
            ),
            1,
        ),
        (
            Mutation(
                _COMBINE,
                "isa.wait_ge(head, room_for(base, num_sent, count, p.combine_ring_rows))",
                "pass",
            ),
            1,
        ),
        (Mutation(_COMBINE, "isa.store_release(dest, ", "isa.store(dest, "), 1),
        (Mutation(_COMBINE, "base + max(", "base + p.combine_ring_rows + max("), 1),
    ],
    ids=[
        "rows read before their tail",
        "rows overwritten before their head",
        "a tail before the group's rows",
        "heads of rows that are not read",
        "a prefix without sources",
        "a prefix without channels",
        "rows added before their tail",
        "returned rows overwritten before their head",
        "a returned tail without release",
        "heads of tokens that are not done",
    ],
)
def test_a_mistake_is_seen(mutation: Mutation, op: int, run: RunCase) -> None:
    case = replace(_EVEN, grid=Grid(tokens=(192,), ranks_per_node=(4,), num_sms=(4,)))
    # By a group's synchronisation all warps have had rows of the chunk, some of them two.
    rings = (7, 16) if "sync_group" in mutation.old else (3, 4)
    rows = run(case, with_rings(*rings), mutation=mutation)
    assert rows[op].status == "incorrect", (rows[op].status, rows[op].reason)
    assert rows[op].check.num_wrong > 0


@pytest.mark.parametrize(
    ("module", "old", "op", "flag"),
    [
        (_DISPATCH, "if member == 0 and batch_end < num_rows:", 0, "head"),
        (_COMBINE, "if isa.load_i64(returned) < head:", 1, "back_head"),
    ],
)
def test_heads_that_are_never_returned(
    module: str, old: str, op: int, flag: str, run: RunCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation = Mutation(module, old, "if p.rank < 0:")
    protocol = with_rings(1, 2)
    row = run(_EVEN, protocol, mutation=mutation)[op]
    path = install_mutant(protocol, mutation, monkeypatch)
    (line,) = [
        number
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if "isa.wait_ge(head, " in text
    ]
    assert row.status == "timeout"
    assert "deadlock" in str(row.reason)
    assert f"{path}:{line} waits for {flag}" in str(row.reason)
