"""Every kernel of device cuda is bitwise right on fake GPUs: its arguments, windows and order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cuda_world import fake_gpu, outcome, run_on_cards, run_on_one_card
from fake_collectives import FakeCollectives
from fake_streams import FakeGpu
from kernel_cases import ACROSS_NODES, own_kernels, protocols, write_few_tokens

from bench.records.record import Form, Impl
from bench.timing import Timing
from comms.cuda.kept_nccl import KeptNccl
from kernels.devices import cuda_library
from kernels.registry import find_protocol

PASSED = dict.fromkeys(("dispatch", "combine", "pair"), ("passed", None))
_CHECKED = Timing(num_iters=0, num_warmup=0, timeout_s=20.0)
_HERE = protocols("cuda")
_OURS = own_kernels()
_HOSTED = [
    (kernel, one)
    for kernel, one in _HERE
    if find_protocol(kernel, one).library is not None and kernel != "mpi" and one != "copy_engine"
]


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[FakeGpu]:
    """Let there be GPUs."""
    with fake_gpu(tmp_path) as found:
        yield found


def test_all_kernels_are_here_but_models() -> None:
    assert {kernel for kernel, _, _ in _OURS} == {
        *("direct", "two_hop", "ring", "ring_two_hop", "low_latency")
    }
    assert {kernel for kernel, _ in _HOSTED} == {"nccl", "two_hop"}
    assert not any(kernel == "nccl_like" for kernel, _ in _HERE)


@pytest.mark.parametrize("form", ["fresh", "cached"])
@pytest.mark.parametrize(("kernel", "variant", "impl"), _OURS)
def test_kernels_are_right_on_ranks_that_share_a_card(
    gpu: FakeGpu, kernel: str, variant: str, impl: Impl, form: Form
) -> None:
    nodes = 2 if kernel in ACROSS_NODES else 1
    cases = run_on_one_card(
        _CHECKED,
        kernel=(f"{kernel}/{variant}",),
        impl=(impl,),
        form=(form,),
        nodes=(nodes,),
        ranks_per_node=(4 // nodes,),
    )
    assert outcome(cases) == PASSED
    assert gpu.machine.left() == []


@pytest.mark.parametrize(("kernel", "variant", "impl"), _OURS)
def test_ranks_on_one_card_have_tokens_of_their_own(
    gpu: FakeGpu, kernel: str, variant: str, impl: Impl, tmp_path: Path
) -> None:
    nodes = 2 if kernel in ACROSS_NODES else 1
    cases = run_on_one_card(
        _CHECKED,
        kernel=(f"{kernel}/{variant}",),
        impl=(impl,),
        nodes=(nodes,),
        ranks_per_node=(8 // nodes,),
        num_experts=256,
        tokens=(16,),
        routing=(write_few_tokens(tmp_path),),
    )
    assert outcome(cases) == PASSED


@pytest.mark.parametrize(("kernel", "variant", "impl"), _OURS)
def test_kernels_are_right_on_cards_of_their_own(
    gpu: FakeGpu, kernel: str, variant: str, impl: Impl
) -> None:
    nodes = 2 if kernel in ACROSS_NODES else 1
    for cases in run_on_cards(
        2,
        _CHECKED,
        kernel=(f"{kernel}/{variant}",),
        impl=(impl,),
        nodes=(nodes,),
        ranks_per_node=(2 // nodes,),
    ):
        assert outcome(cases) == PASSED
    assert gpu.machine.left() == []


@pytest.mark.parametrize("form", ["fresh", "cached"])
@pytest.mark.parametrize(("kernel", "variant"), _HOSTED)
def test_calls_of_the_host_are_made_in_the_order_of_the_stream(
    gpu: FakeGpu, kernel: str, variant: str, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collectives(_: object, wanted: object, *, rank: int, stream: int) -> FakeCollectives:
        return FakeCollectives(comms[rank], rank, stream)

    comms: dict[int, Any] = {}
    monkeypatch.setattr(cuda_library, "nccl_collectives", collectives)
    monkeypatch.setattr(KeptNccl, "get", lambda self: cast(Any, None))
    nodes = 2 if kernel in ACROSS_NODES else 1
    for cases in run_on_cards(
        2,
        Timing(num_iters=2, num_warmup=0, timeout_s=20.0),
        before=lambda ranks: comms.update({ranks.rank: ranks.comm.Dup()}),
        kernel=(f"{kernel}/{variant}",),
        form=(form,),
        nodes=(nodes,),
        ranks_per_node=(2 // nodes,),
    ):
        assert outcome(cases) == PASSED
