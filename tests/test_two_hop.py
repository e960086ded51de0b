"""`two_hop` with a mistake put into it: what each wait, credit and place is for."""

from dataclasses import replace
from pathlib import Path

import pytest
from kernel_cases import KernelCase
from mutants import Mutation, install_mutant

from bench import harness
from bench.grid import Grid
from kernels.two_hop import PROTOCOLS

RAIL, _ = PROTOCOLS
_DISPATCH, _COMBINE = "kernels.two_hop.dispatch", "kernels.two_hop.combine"
_SENDERS, _PLACES = "kernels.two_hop.senders", "kernels.two_hop.places"
#: Ranks enough that one ends before the others' rows for it have come.
_WIDE = KernelCase(
    Grid(tokens=(100,), nodes=(2,), ranks_per_node=(4,), num_sms=(1,), routing=("hot:2",))
)
#: So many tokens that the streams' rings go round, combine's as short as they may be.
_MANY = KernelCase(
    Grid(
        tokens=(300,),
        nodes=(2,),
        ranks_per_node=(2,),
        num_sms=(1,),
        knob=("combine_chunk_rows=1", "combine_ring_rows=1"),
    )
)


@pytest.mark.parametrize(
    ("mutation", "op", "status", "reason", "skew_us"),
    [
        pytest.param(
            Mutation(_DISPATCH, "isa.wait_ge(p.hello + 8 * source, fresh)", "pass"),
            "dispatch",
            "incorrect",
            "dispatch to rank",
            40.0,
            id="places taken before the counts are here",
        ),
        pytest.param(
            Mutation(
                _SENDERS,
                "isa.wait_ge(p.credit + 8 * mine, at + p.chunk_rows - p.ring_rows)",
                "pass",
                kernel=_DISPATCH,
            ),
            "dispatch",
            "incorrect",
            "dispatch to rank",
            0.0,
            id="a ring overwritten",
        ),
        pytest.param(
            Mutation(
                _PLACES,
                "isa.sum_rows(workers, channel, cursor, cursor)",
                "isa.sum_rows(workers, 0, cursor, cursor)",
                kernel=_DISPATCH,
            ),
            "dispatch",
            "incorrect",
            "dispatch to rank",
            0.0,
            id="every channel's rows in the first one's places",
        ),
        pytest.param(
            Mutation(
                _COMBINE,
                "isa.wait_ge(p.back_tail + 8 * stream, begun + chunk * p.combine_chunk_rows)",
                "pass",
            ),
            "combine",
            "incorrect",
            "combine to rank",
            0.0,
            id="sums added before they are here",
        ),
        pytest.param(
            Mutation(
                _COMBINE,
                "    flag = p.back_credit + 8 * stream_from(p, other)\n",
                "    return\n    flag = 0\n",
            ),
            "combine",
            "timeout",
            "waits for any of",
            0.0,
            id="no credit",
        ),
        pytest.param(
            Mutation(
                _COMBINE,
                "        p.combine_chunk_rows - p.combine_ring_rows,\n",
                "        -(1 << 62),\n",
            ),
            "combine",
            "incorrect",
            "combine to rank",
            0.0,
            id="sums written where others wait to be read",
        ),
    ],
)
def test_a_mistake_is_noticed(
    mutation: Mutation,
    op: str,
    status: str,
    reason: str,
    skew_us: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install_mutant(RAIL, mutation, monkeypatch)
    spec = replace(_MANY.spec(RAIL.kernel, RAIL.variant, "fresh", tmp_path), skew_us=skew_us)
    (row,) = [row for row in harness.run_spec(spec, lambda *_: None) if row.op == op]
    assert row.status == status, row.reason
    assert reason in str(row.reason)


def test_an_end_before_the_nodes_rows_are_here_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wait = "isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)"
    install_mutant(RAIL, Mutation(_DISPATCH, wait, "pass"), monkeypatch)
    spec = _WIDE.spec(RAIL.kernel, RAIL.variant, "fresh", tmp_path)
    rows = {row.op: row for row in harness.run_spec(spec, lambda *_: None)}
    assert rows["dispatch"].status == "incorrect"
    assert "arrived after the kernel returned" in str(rows["dispatch"].reason)
