"""`epbench run --device cuda`: its flags, who runs it, and how it ends without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from bench.card_options import profiling
from bench.cli import main
from bench.expand import expand
from bench.grid import DEFAULTS, Grid
from bench.pages.table import build_page
from bench.ranks.request import is_alone
from bench.records.record import Case, Clocks, Rank, Run, decode_run
from bench.suites import SUITES
from comms.cuda.cards import visible_cards
from comms.errors import RuntimeFailure, UsageError
from comms.fabric import ONE_CARD, fabric_names, load_fabric
from comms.mpi.alone import alone
from comms.mpi.control import Control
from comms.mpi.launcher import no_launcher

ROOT = Path(__file__).parent.parent


def _has_gpu() -> bool:
    try:
        return bool(visible_cards())
    except RuntimeFailure:
        return False


without_gpu = pytest.mark.skipif(_has_gpu(), reason="there is a GPU")


def _one_card(**axes: object) -> Grid:
    return msgspec.structs.replace(DEFAULTS["cuda"], fabric=(ONE_CARD,), **axes)


@without_gpu
@pytest.mark.parametrize("world", ["--ranks-per-card", "--ranks"])
def test_without_a_gpu_a_run_ends_with_one_sentence_and_3(world: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--device", "cuda", world, "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("epbench: GPUs cannot be looked for: ")
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--ranks-per-card", "2", "--ranks", "4"), "leave out --ranks, or start a rank a GPU"),
        (("--ranks-per-card", "2", "--fabric", "h800"), "--fabric cannot be given together"),
        (
            ("--ranks-per-card", "2", "--ranks-per-node", "2"),
            "--ranks-per-node cannot be given together",
        ),
        (("--ranks-per-card", "3", "--nodes", "2"), "must be a multiple of --nodes 2, got 3"),
        (("--graph", "--profile"), "--graph and --profile cannot be given together"),
        (("--prefix", "8"), "prefix must be full on device cuda"),
        (("--skew-us", "3"), "skew_us must be 0.0 on device cuda"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    assert main(["run", "--device", "cuda", "--kernel", "direct", *flags]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--graph",), ("--profile",), ("--memory", "nccl")])
def test_flags_of_gpus_are_for_gpus(
    flag: tuple[str, ...], capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    assert main(["run", "--device", "cpu", *flag]) == 2
    assert f"{flag[0]} is for device cuda" in capsys.readouterr().err
    assert main(["run", "--ranks-per-card", "2"]) == 2
    assert "--ranks-per-card is for device cuda" in capsys.readouterr().err


def test_one_card_is_a_fabric_of_its_own_without_caps() -> None:
    fabric = load_fabric(ONE_CARD)
    assert (fabric.name, fabric.capped) == (ONE_CARD, False)
    assert "H800" not in fabric.gpu
    assert ONE_CARD not in fabric_names()
    with pytest.raises(UsageError, match="is for device cuda"):
        expand([Grid(fabric=(ONE_CARD,))])


def test_ranks_that_share_a_card_are_one_process_without_mpi() -> None:
    shared = expand([_one_card(ranks_per_node=(8,), kernel=("direct",))])
    assert {spec.num_processes for spec in shared} == {1}
    assert is_alone(shared)
    apart = expand([msgspec.structs.replace(DEFAULTS["cuda"], kernel=("direct",))])
    assert {spec.num_processes for spec in apart} == {8}
    assert not is_alone([*shared, *apart])
    assert not is_alone(expand([DEFAULTS["cpu"]]))
    assert no_launcher().command(1, ["python", "-m", "bench"]) == ["python", "-m", "bench"]
    assert no_launcher().signal_of(-9) == 9
    assert no_launcher().signal_of(3) is None


def test_a_lone_process_has_a_page_and_a_communicator() -> None:
    ranks = alone()
    assert (ranks.rank, ranks.world_size, ranks.num_hosts) == (0, 1, 1)
    assert ranks.comm.allgather("a") == ["a"]
    assert ranks.comm.Dup().bcast(3) == 3
    control = Control(ranks)
    assert control.claim_exit(3)
    assert not control.claim_exit(4)
    assert control.exit_code() == 3
    assert control.dead_ranks() == []


def test_the_suite_of_one_card_has_every_kernel_on_2_4_and_8_ranks() -> None:
    specs = expand(SUITES["one-card"].grids)
    assert {spec.fabric.name for spec in specs} == {ONE_CARD}
    assert is_alone(specs)
    kernels = {"direct", "ring", "low_latency", "two_hop", "ring_two_hop"}
    assert {spec.kernel for spec in specs} == kernels
    for kernel in kernels:
        own = [spec for spec in specs if spec.kernel == kernel]
        assert {spec.form for spec in own} == {"fresh", "cached"}
        sizes = {4, 8} if kernel in ("two_hop", "ring_two_hop") else {2, 4, 8}
        assert {spec.world_size for spec in own} == sizes
    # All blocks of all ranks fit on an H100's SMs.
    assert max(spec.world_size * spec.num_sms for spec in specs) <= 132


def test_profilers_are_told_what_to_run() -> None:
    argv = ["epbench", "run", "--profile"]
    shared = profiling(argv, expand([_one_card(kernel=("direct",))]))
    assert "nsys profile --trace=cuda,nvtx --output=epbench epbench run --profile" in shared
    assert "ncu --target-processes=all" in shared
    apart = profiling(argv, expand([msgspec.structs.replace(DEFAULTS["cuda"], kernel=("direct",))]))
    assert "ncu --" not in apart
    assert "needs --ranks-per-card" in apart


def _on_one_card(case: Case, clocks: Clocks | None) -> Case:
    return msgspec.structs.replace(
        case,
        device="cuda",
        fidelity="measured",
        fabric=ONE_CARD,
        world_size=2,
        bound_own_us=None,
        bound_best_us=None,
        efficiency=None,
        memcpy_samples_us=[50.0] * len(case.samples_us),
        clocks=clocks,
    )


def test_a_page_says_that_ranks_share_a_card_and_what_slowed_it(run: Run) -> None:
    clocks = Clocks(
        sm_mhz_min=1200, sm_mhz_max=1980, reasons=["power cap"], num_slowed=2, num_discarded=1
    )
    passed = [case for case in run.cases if case.status == "passed"]
    run.cases = [_on_one_card(passed[0], clocks), _on_one_card(passed[1], None)]
    run.ranks = [Rank(rank=0, local_rank=0, node_rank=0, device="NVIDIA H100 80GB HBM3 0000:1b")]
    page = build_page(decode_run(msgspec.json.encode(run)))
    heading = "\n".join(page.heading)
    assert "1 processes on NVIDIA H100 80GB HBM3 0000:1b" in heading
    assert "GPUs were slowed (power cap) in 2 iterations, 1 of which are left out" in heading
    assert "H800" not in "\n".join(block.title for block in page.blocks)
    for block in page.blocks:
        assert "one-card: all ranks share one GPU" in block.title
        names = block.table().names
        assert "nvlink" not in names
        assert "of memcpy" in names


@pytest.mark.parametrize(
    ("kernels", "impl", "expected"),
    [
        (("direct/push",), ("numba",), [("direct/push", "numba")]),
        (("direct/push",), ("cupy",), [("direct/push (cupy)", "cupy")]),
        (
            ("direct/push", "two_hop/rail"),
            ("numba", "cupy"),
            [
                ("direct/push", "numba"),
                ("direct/push (cupy)", "cupy"),
                ("two_hop/rail", "numba"),
            ],
        ),
        (
            ("nccl/dedup", "low_latency/fused"),
            ("cupy",),
            [("nccl/dedup", "numba"), ("low_latency/fused (cupy)", "cupy")],
        ),
    ],
)
def test_kernels_are_taken_as_they_are_made(
    kernels: tuple[str, ...],
    impl: tuple[Literal["numba", "cupy"], ...],
    expected: list[tuple[str, str]],
) -> None:
    specs = expand([msgspec.structs.replace(DEFAULTS["cuda"], kernel=kernels, impl=impl)])
    found = [(spec.kernel_label(), spec.impl) for spec in specs]
    assert list(dict.fromkeys(found)) == expected
    for spec in specs:
        assert (spec.protocol().impl == "cupy") == (spec.impl == "cupy")
        assert spec.axes().get("impl", "numba") == spec.impl


def test_a_kernel_without_cuda_cxx_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--device", "cuda", "--kernel", "two_hop/rail", "--impl", "cupy"]
    assert main(asked) == 2
    err = capsys.readouterr().err
    assert "two_hop/rail is not written in CUDA C++: leave out --impl cupy" in err
