"""Every kernel is bitwise right or refuses, and the harness notices kernels that are wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kernel_cases import CASES, KernelCase, preset_cases, protocols, refusal
from mutants import Mutation, install_mutant

from bench import harness
from bench.expand import expand
from bench.grid import DEVICES, Grid, default_grid
from bench.records.record import Case, Form
from bench.suites import SUITES
from kernels.direct import PULL, PUSH
from kernels.low_latency import FUSED
from kernels.nccl_like import ALLGATHER, PADDED, SELECTION
from kernels.protocol import Protocol

_PRESETS = preset_cases()
PROTOCOLS = protocols("sim")


def _forms(turn: int, case: KernelCase, kernel: str) -> tuple[Form, ...]:
    """Return the forms of a case: what is awkward about it meets the same packing in all models.

    So these take turns.
    """
    return (case.forms[turn % len(case.forms)],) if kernel == "nccl_like" else case.forms


def _points(cases: dict[str, KernelCase]) -> list[Any]:
    """Return (case, kernel, variant, form) of every run, neighbours sharing their routing."""
    return [
        pytest.param(case, kernel, variant, form, id=f"{name}-{kernel}-{variant}-{form}")
        for turn, (name, case) in enumerate(cases.items())
        for number, (kernel, variant) in enumerate(PROTOCOLS)
        for form in _forms(turn + number, case, kernel)
    ]


def _run(case: KernelCase, protocol: tuple[str, str], form: Form, folder: Path) -> list[Case]:
    spec = case.spec(*protocol, form, folder)
    rows = harness.run_spec(spec, lambda *_: None)
    assert [row.op for row in rows] == ["dispatch", "combine", "pair"]
    for row in rows:
        reason = refusal(spec, row.op)
        if reason is None:
            assert (row.status, row.reason, row.check.num_wrong) == ("passed", None, 0), row.op
            assert row.time_us is not None
            assert row.time_us > 0
        else:
            assert row.status == "skipped", row.op
            assert reason in str(row.reason)
    return rows


def test_every_kernel_meets_every_case_and_every_form() -> None:
    points = [param.values for param in _points(CASES)]
    for protocol in PROTOCOLS:
        met = [(case, form) for case, *other, form in points if tuple(other) == protocol]
        assert [case for case in CASES.values() if case not in [one for one, _ in met]] == []
        assert {form for _, form in met} == {"fresh", "cached"}
        if protocol[0] != "nccl_like":
            assert len(met) == sum(len(case.forms) for case in CASES.values())


@pytest.mark.parametrize(("case", "kernel", "variant", "form"), _points(CASES))
def test_right_or_refused(
    case: KernelCase, kernel: str, variant: str, form: Form, tmp_path: Path
) -> None:
    dispatched = _run(case, (kernel, variant), form, tmp_path)[0]
    by_rank = dispatched.granularity == "rank" and dispatched.status == "passed"
    if case.num_rows is not None and by_rank:
        assert dispatched.check.num_checked == case.num_rows


@pytest.mark.parametrize(("case", "kernel", "variant", "form"), _points(_PRESETS))
def test_every_preset(
    case: KernelCase, kernel: str, variant: str, form: Form, tmp_path: Path
) -> None:
    rows = _run(case.where_it_runs(kernel), (kernel, variant), form, tmp_path)
    assert all(row.check.num_checked >= 32 * 8 for row in rows)


@pytest.mark.parametrize(("kernel", "variant"), PROTOCOLS)
def test_a_pair_checks_both_halves(kernel: str, variant: str, tmp_path: Path) -> None:
    case = CASES["masked"].where_it_runs(kernel)
    dispatch_row, combine_row, pair = _run(case, (kernel, variant), "fresh", tmp_path)
    assert combine_row.check.num_checked == 40 * 8
    assert pair.check.num_checked == dispatch_row.check.num_checked + combine_row.check.num_checked


_DISPATCH, _PULL = "kernels.direct.dispatch", "kernels.direct.combine_pull"
_PUSH, _UNPACK = "kernels.direct.combine_push", "kernels.packing.unpack"
_PADDED, _GATHERED = "kernels.packing.padded", "kernels.packing.gathered"
_COUNTS, _ALLTOALLV = "kernels.nccl_like.counts", "kernels.nccl_like.alltoallv"
#: Tokens spread over 4 ranks, and a matrix by which rank 1 sends nothing and is done early.
_EVEN = KernelCase(Grid(tokens=(24,), ranks_per_node=(4,), num_sms=(2,)))
_UNEVEN = replace(CASES["matrix"], num_rows=None)


@pytest.fixture
def rows_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Case]]:
    """Run a mutant of a protocol and return its rows."""

    def run(
        protocol: Protocol, mutation: Mutation, case: KernelCase = _EVEN, form: Form = "fresh"
    ) -> list[Case]:
        install_mutant(protocol, mutation, monkeypatch)
        spec = case.spec(protocol.kernel, protocol.variant, form, tmp_path)
        return harness.run_spec(spec, lambda *_: None)

    return run


def test_rows_sent_before_the_counts_are_here(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_DISPATCH, "isa.wait_ge(p.hello + 8 * source, epoch)", "pass")
    dispatch = rows_of(PULL, mutation)[0]
    assert dispatch.status == "incorrect"
    assert dispatch.check.num_wrong > 0
    assert "dispatch to rank" in str(dispatch.reason)


def test_a_dispatch_that_ends_before_its_rows_are_here(
    rows_of: Callable[..., list[Case]],
) -> None:
    mutation = Mutation(
        _DISPATCH, "isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)", "pass"
    )
    dispatch = rows_of(PULL, mutation, _UNEVEN)[0]
    assert dispatch.status == "incorrect"
    assert "arrived after the kernel returned" in str(dispatch.reason)


def test_a_flag_whose_epoch_is_forgotten(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_DISPATCH, "p.done, epoch * p.ranks_per_node", "p.done, p.ranks_per_node")
    dispatch, _, pair = rows_of(PULL, mutation, _UNEVEN)
    assert dispatch.status == "passed"
    assert pair.status == "incorrect"
    assert "arrived after the kernel returned" in str(pair.reason)


def test_waits_in_the_wrong_order(
    rows_of: Callable[..., list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = """\
    for source in range(warp, p.world_size, p.num_warps):
        isa.wait_ge(p.hello + 8 * source, epoch)
"""
    hello = "    if sm == 0:\n        say_hello(p, warp, epoch)\n"
    mutation = Mutation(_DISPATCH, hello + wait, wait + hello)
    dispatch, combine, pair = rows_of(PULL, mutation)
    path = install_mutant(PULL, mutation, monkeypatch)
    lines = path.read_text().splitlines()
    line = lines.index("        isa.wait_ge(p.hello + 8 * source, epoch)") + 1
    assert dispatch.status == "timeout"
    assert "deadlock" in str(dispatch.reason)
    assert f"{path}:{line} waits for hello" in str(dispatch.reason)
    assert ">= 1, sees 0" in str(dispatch.reason)
    for other in (combine, pair):
        assert other.status == "skipped"
        assert "dispatch ended with" in str(other.reason)


def test_weights_of_another_token(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_DISPATCH, "p.topk_weights_addr + at, ", "p.topk_weights_addr, ")
    dispatch, combine, _ = rows_of(PUSH, mutation, form="cached")
    assert dispatch.status == "incorrect"
    assert "recv_topk_weights element" in str(dispatch.reason)
    assert combine.status == "passed"


def test_a_row_for_a_rank_that_does_not_exist(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _DISPATCH, "isa.copy_row(peer, p.recv_x", "isa.copy_row(peer + p.world_size, p.recv_x"
    )
    dispatch = rows_of(PULL, mutation)[0]
    assert dispatch.status == "error"
    assert "which does not exist" in str(dispatch.reason)


def test_rows_added_in_the_wrong_order(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_PUSH, "slots + 4 * index,", "slots + 4 * (num_rows - 1 - index),")
    _, combine, _ = rows_of(PUSH, mutation)
    assert combine.status == "incorrect"
    assert "combine to rank" in str(combine.reason)


def test_rows_added_before_they_are_here(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _PUSH, "isa.wait_ge(flag, (epoch - 1) * EPOCH + chunk // num_pushers + 1)", "pass"
    )
    _, combine, _ = rows_of(PUSH, mutation)
    assert combine.status == "incorrect"


def test_a_token_left_out(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_PULL, "worker + 1, num_workers)", "worker + 1, num_workers + 1)")
    _, combine, pair = rows_of(PULL, mutation)
    assert combine.status == pair.status == "incorrect"
    assert "poison: never written" in str(combine.reason)


def test_an_expert_output_of_another_place(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_UNPACK, "p.y_addr + place * p.y_row_bytes", "p.y_addr")
    dispatch, combine, _ = rows_of(SELECTION, mutation)
    assert dispatch.status == "passed"
    assert combine.status == "incorrect"


def test_a_row_of_padding_that_is_kept(rows_of: Callable[..., list[Case]]) -> None:
    count = "count = isa.load_i32(p.recv_counts_addr + 4 * source)"
    mutation = Mutation(_PADDED, count, "count = isa.load_i32(p.recv_begins_addr + 4)")
    dispatch = rows_of(PADDED, mutation)[0]
    assert dispatch.status == "incorrect"
    assert dispatch.check.num_wrong > 0


def test_rows_that_go_back_without_their_padding(rows_of: Callable[..., list[Case]]) -> None:
    place = "place = isa.load_i32(p.recv_places_addr + 4 * row)"
    dispatch, combine, _ = rows_of(PADDED, Mutation(_PADDED, place, "place = row"))
    assert dispatch.status == "passed"
    assert combine.status == "incorrect"


def test_a_longest_message_of_the_own_only(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _COUNTS,
        "p.most_rows_addr + 4 * source))\n    for",
        "p.most_rows_addr + 4 * p.rank))\n    for",
    )
    assert rows_of(PADDED, mutation, _UNEVEN)[0].status == "incorrect"


def test_tokens_that_a_rank_does_not_have(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_GATHERED, "isa.store_i32(p.own_idx_addr + 4 * entry, -1)", "pass")
    dispatch = rows_of(ALLGATHER, mutation, _UNEVEN)[0]
    assert dispatch.status == "error", dispatch.reason


def test_gathered_rows_read_before_they_are_here(rows_of: Callable[..., list[Case]]) -> None:
    # Ids are waited for: garbage in their place would be no experts at all.
    wait = "isa.wait_ge(chunks, message.exchange * EXCHANGE + step + 1)"
    mutation = Mutation(_ALLTOALLV, wait, f"if not message.is_row:\n            {wait}")
    dispatch = rows_of(ALLGATHER, mutation)[0]
    assert dispatch.status == "incorrect"
    assert "dispatch to rank" in str(dispatch.reason)


def test_a_token_gathered_from_another_place(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_GATHERED, "p.gather_x_addr + token * p.x_row_bytes", "p.gather_x_addr")
    dispatch, combine, _ = rows_of(ALLGATHER, mutation, form="cached")
    assert dispatch.status == "incorrect"
    assert combine.status == "passed"


def test_rows_that_come_back_for_another_token(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_GATHERED, "rank * p.split_tokens + token", "rank * p.split_tokens")
    dispatch, combine, _ = rows_of(ALLGATHER, mutation)


_LL_DISPATCH, _LL_COMBINE = "kernels.low_latency.dispatch", "kernels.low_latency.combine"


def test_a_selection_copied_before_it_is_here(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _LL_DISPATCH, "isa.wait_ge(flag, (epoch - 1) * EPOCH + row // parts + 1)", "pass"
    )
    assert rows_of(FUSED, mutation)[0].status == "incorrect"


def test_a_selection_said_to_be_here_without_a_fence(rows_of: Callable[..., list[Case]]) -> None:
    fence = "            isa.fence_release()\n            isa.add(stream.peer"
    mutation = Mutation(_LL_DISPATCH, fence, fence.replace("isa.fence_release()", "pass"))
    full = KernelCase(Grid(tokens=(128,), num_sms=(20,)))
    assert rows_of(FUSED, mutation, full)[0].status == "incorrect"


def test_a_selection_added_before_it_is_back(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _LL_COMBINE, "isa.wait_ge(flag, (epoch - 1) * EPOCH + row // parts + 1)", "pass"
    )
    dispatch, combine, _ = rows_of(FUSED, mutation)
    assert dispatch.status == "passed"
    assert combine.status == "incorrect"


@pytest.mark.parametrize("kernel", ["nccl_like", "mpi"])
def test_an_all_gather_that_is_too_big_names_its_bytes(kernel: str) -> None:
    grid = Grid(kernel=(f"{kernel}/allgather",), nodes=(8,), tokens=(4096,))
    if kernel == "mpi":
        grid = msgspec.structs.replace(grid, device="cpu", fabric=("uncapped",), prefix=None)
    (spec,) = expand([grid])
    # A row of 224 B by the prefix, 7392 B whole; two of 384 B, 14336 B; 8 ids and weights.
    size = "17.7 GB" if kernel == "nccl_like" else "606.1 GB"
    for row in harness.run_spec(spec, lambda *_: None):
        assert row.status == "skipped"
        assert f"all-gather of 4096 tokens to 64 ranks takes {size}" in str(row.reason)


def test_nothing_runs_a_variant_that_nobody_compares_with_unless_asked() -> None:
    grids = [
        *(default_grid(device) for device in DEVICES),
        *sum((s.grids for s in SUITES.values()), ()),
    ]
    specs = [spec for spec in expand(grids) if spec.kernel in ("nccl_like", "nccl", "mpi")]
    assert {spec.variant for spec in specs} == {"dedup", "selection"}
    asked = expand([Grid(kernel=("nccl_like",))])
    assert [spec.variant for spec in asked] == ["dedup", "selection", "padded", "allgather"]


def test_the_weight_of_another_selection(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(_LL_COMBINE, "p.topk_weights_addr + 4 * (first + k)", "p.topk_weights_addr")
    _, combine, pair = rows_of(FUSED, mutation)
    assert combine.status == pair.status == "incorrect"
    assert "combine to rank" in str(combine.reason)


def test_a_row_back_from_the_place_of_another(rows_of: Callable[..., list[Case]]) -> None:
    mutation = Mutation(
        _LL_DISPATCH, "p.back_rows_addr + 4 * back, place)", "p.back_rows_addr + 4 * back, 0)"
    )
    dispatch, combine, _ = rows_of(FUSED, mutation)
    assert dispatch.status == "passed"
    assert combine.status == "incorrect"
