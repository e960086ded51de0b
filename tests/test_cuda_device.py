"""Device cuda on fake GPUs: what it launches in what order, and how cases fail."""

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cuda_world import QUICK, fake_gpu, outcome, run_on_cards, run_on_one_card, spec_of, team_of
from fake_streams import FakeGpu

from bench.harness import run_spec
from bench.records.record import Case
from bench.timing import Timing
from comms.mpi.alone import alone

MEET, STAMP, COMBINE = "epbench_meet", "epbench_stamp", "epbench_combine_pull"
PASSED = dict.fromkeys(("dispatch", "combine", "pair"), ("passed", None))
#: Whole waits of tests whose kernels never end.
_SHORT = msgspec.structs.replace(QUICK, timeout_s=0.5)


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[FakeGpu]:
    """Let there be GPUs."""
    with fake_gpu(tmp_path) as found:
        yield found


def test_ranks_on_one_card_are_right_and_labelled(gpu: FakeGpu) -> None:
    cases = run_on_one_card()
    assert outcome(cases) == PASSED
    assert gpu.machine.left() == []
    for case in cases:
        assert (case.fabric, case.fidelity, case.world_size) == ("one-card", "measured", 2)
        assert len(case.rank_us) == len(case.rank_timer_us) == 1
        assert len(case.memcpy_samples_us) == len(case.samples_us) == QUICK.num_iters
        assert case.efficiency is None
        assert case.time_us is not None
        assert case.time_us > 0
    launches = {name: grid for _, name, grid, _ in gpu.launches}
    assert launches["epbench_dispatch"] == (2, 2)
    assert launches[MEET] == (1, 2)


def test_ranks_on_cards_of_their_own_are_right(gpu: FakeGpu) -> None:
    for cases in run_on_cards(2):
        assert outcome(cases) == PASSED
        assert [len(case.rank_us) for case in cases] == [2, 2, 2]
        assert [case.fabric for case in cases] == ["uncapped"] * 3
        assert not any(case.memcpy_samples_us for case in cases)
    assert gpu.machine.left() == []
    assert {grid for _, name, grid, _ in gpu.launches if name == "epbench_dispatch"} == {(2, 1)}


def test_the_first_rank_compiles_before_the_others_look(gpu: FakeGpu) -> None:
    run_on_cards(2)
    order = [rank for rank, name, _ in gpu.compiles if name == "dispatch"]
    assert order == [0, 1]
    assert all(options["arch"] == "sm_90" for _, _, options in gpu.compiles)
    assert not any(options["is_virtual"] for _, _, options in gpu.compiles)


def test_a_timed_iteration_empties_the_cache_meets_and_stamps(gpu: FakeGpu) -> None:
    run_on_one_card(Timing(num_iters=1, num_warmup=0, timeout_s=20.0))
    steps = [what for _, what in gpu.events]
    last = len(steps) - 1 - steps[::-1].index(STAMP)
    begin = last - steps[last::-1].index("memset")
    assert steps[begin : last + 2] == [
        "memset",
        MEET,
        "event",
        "epbench_dispatch",
        "event",
        COMBINE,
        "event",
        STAMP,
        "copy",
    ]


def _opened(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return how far the gate was opened, and how many launches were queued then, of each call."""
    from comms.cuda.notes import Notes

    opened: list[tuple[int, int]] = []
    plain = Notes.open_gate

    def open_gate(self: Notes, runs: int) -> None:
        opened.append((runs, len(gpu.launches)))
        plain(self, runs)

    monkeypatch.setattr(Notes, "open_gate", open_gate)
    run_on_one_card(Timing(num_iters=1, num_warmup=0, timeout_s=20.0))
    # The first call is of a device that is made, then there are two a run.
    return opened[1:]


def test_the_gate_opens_when_everything_is_queued(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = _opened(gpu, monkeypatch)
    checked, timed = opened[-4:-2], opened[-2:]
    (shut, before), (opens, after) = timed
    assert opens == shut + 1
    names = [name for _, name, _, _ in gpu.launches[before:after]]
    assert names == [MEET, "epbench_dispatch", COMBINE, STAMP]
    # The first run of an operation may make the driver do what waits for kernels.
    assert checked[0][0] > 1 << 60


def test_the_gate_is_open_where_launches_block(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    opened = _opened(gpu, monkeypatch)
    assert all(runs > 1 << 60 for runs, _ in opened[::2])


def test_blocks_that_do_not_fit_are_refused_on_all_ranks(gpu: FakeGpu) -> None:
    gpu.occupancy[COMBINE] = 0
    for cases in run_on_cards(2):
        assert {case.status for case in cases} == {"skipped"}
        assert "of which 0 fit on this GPU's 8 SMs at once: use fewer --num-sms" in str(
            cases[0].reason
        )
    assert gpu.launches == []
    assert gpu.machine.left() == []


def test_shared_memory_that_no_sm_has_is_refused(gpu: FakeGpu) -> None:
    gpu.shared_bytes["dispatch"] = 262144
    cases = run_on_one_card()
    assert {case.status for case in cases} == {"skipped"}
    assert "needs 262144 bytes of shared memory, of 232448 that an SM gives" in str(cases[0].reason)


@pytest.mark.parametrize("ranks_on", ["one card", "cards"])
def test_a_wait_that_never_ends_is_told_by_flag_and_line_and_the_next_case_runs(
    gpu: FakeGpu, ranks_on: str
) -> None:
    def run(timing: Timing) -> list[Case]:
        if ranks_on == "one card":
            return run_on_one_card(timing)
        found = run_on_cards(2, timing)
        assert [outcome(cases) for cases in found] == [outcome(found[0])] * 2
        return list(found[0])

    gpu.lost.add(("epbench_dispatch", 1))
    cases = run(_SHORT)
    assert [case.status for case in cases] == ["timeout", "skipped", "skipped"]
    reason = str(cases[0].reason)
    assert "no end: a wait reached its limit of 0.5 s" in reason
    assert "rank 0 sm 0" in reason
    assert "kernels/direct/dispatch.py:" in reason
    assert ">= " in reason
    gpu.lost.clear()
    assert outcome(run(QUICK)) == PASSED


def test_kernels_run_again_after_a_failure_in_the_same_device(gpu: FakeGpu) -> None:
    from bench.measured import Measured
    from comms.errors import TimeoutFailure

    spec = spec_of(fabric=("one-card",))
    measured = Measured(spec, spec.protocol(), team_of(alone(), _SHORT))
    gpu.lost.add(("epbench_dispatch", 0))
    with pytest.raises(TimeoutFailure):
        measured.first_dispatch()
    gpu.lost.clear()
    measured.first_dispatch()
    measured.close()
    # A kernel that ends early leaves its epochs behind: only the harness's own words are reset.
    assert gpu.machine.left() == []


def test_a_launch_that_fails_in_the_middle_on_one_rank_ends_all(gpu: FakeGpu) -> None:
    gpu.failing[COMBINE, 1] = 720
    for cases in run_on_cards(2):
        assert [case.status for case in cases] == ["passed", "error", "skipped"]
        assert "kernel combine cannot be launched: the blocks of a cooperative launch" in str(
            cases[1].reason
        )
    gpu.failing.clear()
    assert [outcome(cases) for cases in run_on_cards(2)] == [PASSED] * 2


def test_a_kernel_that_kills_its_gpu_ends_the_case_on_all_ranks(gpu: FakeGpu) -> None:
    gpu.killing["epbench_dispatch", 1] = 719
    for cases in run_on_cards(2, _SHORT):
        assert [case.status for case in cases] == ["error", "skipped", "skipped"]
        assert "a kernel failed: compute-sanitizer finds where" in str(cases[0].reason)


def test_a_graph_is_captured_once_and_replayed(gpu: FakeGpu) -> None:
    cases = run_on_one_card(msgspec.structs.replace(QUICK, graph=True))
    assert outcome(cases) == PASSED
    queued = [name for _, name, _, _ in gpu.launches]
    done = [what for _, what in gpu.events]
    # Of dispatch, of combine and of both.
    assert queued.count(MEET) == 3
    assert done.count(MEET) == 3 * (1 + QUICK.num_warmup + QUICK.num_iters)
    assert all(case.phases_us for case in cases)


def test_streams_graphs_and_events_go_when_the_device_is_closed(gpu: FakeGpu) -> None:
    kept: list[weakref.ref[Any]] = []

    def watched(kind: type) -> type:
        class Watched(kind):
            def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
                super().__init__(*args, **kwargs)
                kept.append(weakref.ref(self))

        return Watched

    cuda = sys.modules["cupy.cuda"]
    for name in ("Stream", "Event"):
        setattr(cuda, name, watched(getattr(cuda, name)))
    gc.disable()
    try:
        assert outcome(run_on_one_card(msgspec.structs.replace(QUICK, graph=True))) == PASSED
        assert kept
        assert [one() for one in kept if one() is not None] == []
    finally:
        gc.enable()


def test_a_capture_that_fails_is_told(gpu: FakeGpu) -> None:
    gpu.captures = False
    cases = run_on_one_card(msgspec.structs.replace(QUICK, graph=True))
    assert cases[0].status == "error"
    assert "launches cannot be captured in a graph" in str(cases[0].reason)


def test_profiling_launches_each_kernel_once_in_ranges_with_lines(gpu: FakeGpu) -> None:
    timing = Timing(num_iters=0, num_warmup=0, timeout_s=20.0, profile=True)
    assert outcome(run_on_one_card(timing)) == {
        **dict.fromkeys(("dispatch", "combine"), ("skipped", "profiled as a part of the pair")),
        "pair": ("passed", None),
    }
    queued = [name for _, name, _, _ in gpu.launches]
    assert queued == [MEET, "epbench_dispatch", COMBINE, STAMP]
    assert [name for _, name in gpu.ranges] == ["epbench dispatch", "", "epbench combine", ""]
    assert all(options["line_info"] for _, _, options in gpu.compiles)


def test_iterations_of_a_slowed_gpu_are_left_out_on_all_ranks(gpu: FakeGpu) -> None:
    idle, hot = (1980, 0x1), (1200, 0x20 | 0x4)
    for rank in range(2):
        gpu.clocks[rank] = [idle]
    timing = Timing(num_iters=4, num_warmup=0, timeout_s=20.0)

    def heat(ranks: Any) -> None:  # noqa: ANN401
        if ranks.rank == 1:
            # A check, then four iterations of dispatch.
            gpu.clocks[1] = [idle, idle, hot, hot, idle, idle]

    for cases in run_on_cards(2, timing, before=heat):
        dispatch, combine, _ = cases
        assert len(dispatch.samples_us) == 2
        assert dispatch.clocks is not None
        assert msgspec.to_builtins(dispatch.clocks) == {
            "sm_mhz_min": 1200,
            "sm_mhz_max": 1980,
            "reasons": ["power cap", "temperature"],
            "num_slowed": 2,
            "num_discarded": 2,
        }
        assert len(combine.samples_us) == 4
        assert combine.clocks is not None
        assert combine.clocks.num_slowed == 0


def test_all_iterations_count_where_the_gpu_is_always_slowed(gpu: FakeGpu) -> None:
    gpu.clocks[0] = [(900, 0x80)]
    (dispatch, *_) = run_on_one_card()
    assert dispatch.clocks is not None
    assert (dispatch.clocks.num_slowed, dispatch.clocks.num_discarded) == (2, 0)
    assert len(dispatch.samples_us) == 2


def test_a_gpu_whose_clock_nobody_may_see_is_measured_without(gpu: FakeGpu) -> None:
    assert {case.clocks for case in run_on_one_card()} == {None}


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"num_topk": 33, "num_experts": 64}, "top-k is at most 32, got 33"),
        ({"kernel": ("nccl/dedup",)}, "needs NCCL, which refuses two ranks on one GPU"),
        ({"kernel": ("nccl_like/dedup",)}, "runs on device sim or cpu only"),
        ({"num_sms": (161,)}, "num_sms must be at most 160, got 161"),
    ],
)
def test_what_the_device_cannot_do_is_skipped_with_its_reason(
    gpu: FakeGpu, axes: dict[str, object], reason: str
) -> None:
    cases = run_on_one_card(**axes)
    assert {case.status for case in cases} == {"skipped"}
    assert all(reason in str(case.reason) for case in cases)


def test_bounds_are_those_of_the_gpu_that_runs(gpu: FakeGpu) -> None:
    for cases in run_on_cards(2, fabric=("h100",)):
        assert {case.status for case in cases} == {"skipped"}
        assert "the bounds of fabric h100 are not those of NVIDIA H800" in str(cases[0].reason)
    for cases in run_on_cards(2, fabric=("h800",)):
        assert outcome(cases) == PASSED
        assert cases[0].efficiency is not None


def test_copy_engines_want_the_windows_of_nccl(gpu: FakeGpu) -> None:
    for cases in run_on_cards(2, kernel=("nccl/copy_engine",)):
        assert {case.status for case in cases} == {"skipped"}
        assert "use --memory nccl" in str(cases[0].reason)


def test_memory_that_is_not_there_is_an_error_of_the_case(gpu: FakeGpu) -> None:
    for card in gpu.machine.cards:
        card.total = 1 << 20
    cases = run_on_one_card()
    assert {case.status for case in cases} == {"error"}
    assert "of GPU memory are needed for windows" in str(cases[0].reason)


def test_a_job_that_ends_takes_its_kernels_with_it(gpu: FakeGpu) -> None:
    from cuda_world import FakeControl

    control = FakeControl()
    control.set_abort()
    spec = spec_of(fabric=("one-card",))
    gpu.lost.add(("epbench_dispatch", 1))
    cases = run_spec(spec, lambda *_: None, team_of(alone(), QUICK, control))
    # Not by the limit of 20 s.
    assert cases[0].status == "error"
    assert "another rank's program failed" in str(cases[0].reason)
