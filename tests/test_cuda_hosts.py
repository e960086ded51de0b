"""Worlds over several hosts on fake GPUs: a host's ranks do not reach the memory of others'."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cuda_world import QUICK, fake_gpu, outcome, run_on_cards
from fake_collectives import FakeCollectives, FakeCommunicators
from fake_ranks import run_ranks, this_process
from fake_streams import FakeGpu

from bench.ranks.hosts import refuse_hosts
from bench.records.record import Case, Form
from bench.timing import Timing
from comms.cuda.kept_nccl import KeptNccl
from kernels.devices import cuda_library, cuda_memory

PASSED = dict.fromkeys(("dispatch", "combine", "pair"), ("passed", None))
MEET, STAMP = "epbench_meet", "epbench_stamp"
_HOSTS = (0, 0, 1, 1)
_APART = (
    "kernels of {} write to other nodes' memory themselves, which needs all GPUs in one NVLink "
    "domain (--memory nccl): use two_hop/staged on clusters"
)


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[FakeGpu]:
    """Let there be two hosts of two GPUs."""
    with fake_gpu(tmp_path) as found:
        found.machine.visible = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
        yield found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCommunicators]:
    """Let NCCL be a fake; return its communicators by rank."""
    found: dict[int, FakeCommunicators] = {}
    comms: dict[int, Any] = {}

    def get(self: KeptNccl) -> Any:  # noqa: ANN401
        rank = self._ranks.rank
        if rank not in found:
            comms[rank] = self._ranks.comm.Dup()
            found[rank] = FakeCommunicators(comms[rank])
            self._made = cast(Any, found[rank])
        return found[rank]

    def collectives(_: object, wanted: object, *, rank: int, stream: int) -> FakeCollectives:
        return FakeCollectives(comms[rank], rank, stream)

    monkeypatch.setattr(KeptNccl, "get", get)
    monkeypatch.setattr(cuda_library, "nccl_collectives", collectives)
    return found


def _run(kernel: str, timing: Timing = QUICK, **axes: object) -> list[list[Case]]:
    hosts = {"nodes": (2,), "ranks_per_node": (2,), "hosts": _HOSTS}
    return cast(Any, run_on_cards(4, timing, kernel=(kernel,), **{**hosts, **axes}))


@pytest.mark.parametrize("form", ["fresh", "cached"])
@pytest.mark.parametrize("kernel", ["two_hop/staged", "nccl/dedup", "nccl/selection"])
def test_kernels_of_a_library_are_right_on_two_hosts(
    gpu: FakeGpu,
    made: dict[int, FakeCommunicators],
    kernel: str,
    form: Form,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bases: dict[int, list[bool]] = {}
    plain = cuda_memory.machine_words

    def machine_words(found: list[int], told: Any) -> Any:  # noqa: ANN401
        bases[this_process().rank] = [base != 0 for base in found]
        return plain(found, told)

    monkeypatch.setattr(cuda_memory, "machine_words", machine_words)
    for cases in _run(kernel, form=(form,)):
        assert outcome(cases) == PASSED
        assert {case.nodes for case in cases} == {2}
    near, far = [True, True, False, False], [False, False, True, True]
    assert bases == {0: near, 1: near, 2: far, 3: far}
    assert gpu.machine.left() == []


def test_hosts_meet_between_two_meetings_of_their_ranks_and_outside_of_the_time(
    gpu: FakeGpu, made: dict[int, FakeCommunicators]
) -> None:
    _run("two_hop/staged", Timing(num_iters=1, num_warmup=0, timeout_s=20.0))
    queued = [name for rank, name, _, _ in gpu.launches if rank == 0]
    last = len(queued) - 1 - queued[::-1].index(STAMP)
    begin = last - queued[last::-1].index(MEET)
    assert queued[begin - 2 : begin + 1] == [STAMP, MEET, MEET]
    done = [what for rank, what in gpu.events if rank == 0]
    end = len(done) - 1 - done[::-1].index(STAMP)
    start = end - done[end::-1].index(MEET)
    assert done[start - 1 : start + 2] == [MEET, MEET, "event"]
    # Nobody goes on before all have come.
    for meetings in zip(*(one.meetings for one in made.values()), strict=True):
        assert max(begun for begun, _ in meetings) <= min(ended for _, ended in meetings)
    assert {len(one.meetings) for one in made.values()} == {1 + queued.count(MEET) // 2}


def test_ranks_of_one_host_meet_once_and_without_nccl(gpu: FakeGpu) -> None:
    gpu.machine.visible.clear()
    for cases in run_on_cards(4, QUICK, kernel=("direct/push",), nodes=(2,)):
        assert {case.status for case in cases if case.op == "dispatch"} == {"passed"}
    queued = [name for rank, name, _, _ in gpu.launches if rank == 0]
    assert queued.count(MEET) == queued.count(STAMP)


@pytest.mark.parametrize("kernel", ["direct/push", "two_hop/rail", "ring_two_hop/rail"])
def test_kernels_that_write_to_other_nodes_are_skipped(gpu: FakeGpu, kernel: str) -> None:
    for cases in _run(kernel):
        assert outcome(cases) == dict.fromkeys(PASSED, ("skipped", _APART.format(kernel)))
    assert gpu.compiles == []
    assert gpu.machine.left() == []


def test_a_window_of_nccl_that_ends_at_its_node_is_no_way_either(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comms.cuda.ipc import IpcWindows

    def open_windows(memory: str, layout: Any, ranks: Any, nccl: Any, *, zero: bool) -> Any:  # noqa: ANN401
        assert memory == "nccl"
        return IpcWindows(layout, ranks)

    monkeypatch.setattr(cuda_memory, "open_windows", open_windows)
    for cases in _run("direct/push", msgspec.structs.replace(QUICK, memory="nccl")):
        assert outcome(cases) == dict.fromkeys(PASSED, ("skipped", _APART.format("direct/push")))
    assert gpu.launches == []
    assert gpu.machine.left() == []


def test_a_graph_is_refused_for_kernels_of_a_library(gpu: FakeGpu) -> None:
    for cases in _run("two_hop/staged", msgspec.structs.replace(QUICK, graph=True)):
        assert {case.status for case in cases} == {"skipped"}
        assert str(cases[0].reason).startswith("a graph holds no calls of the host")


def test_ranks_of_a_node_on_two_hosts_end_with_an_error(gpu: FakeGpu) -> None:
    gpu.machine.visible = {0: [0, 2], 1: [1, 3], 2: [0, 2], 3: [1, 3]}
    for cases in _run("nccl/dedup", hosts=(0, 1, 0, 1)):
        assert {case.status for case in cases} == {"error"}
        assert "rank 0 does not reach the memory of rank 1 of its node" in str(cases[0].reason)
    assert gpu.machine.left() == []


def test_nccl_that_fails_when_hosts_first_meet_leaves_nothing(
    gpu: FakeGpu, made: dict[int, FakeCommunicators], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeCommunicators, stream: int, what: str) -> None:
        from comms.errors import RuntimeFailure

        settled(self, stream, what)
        if this_process().rank == 2:
            raise RuntimeFailure(f"{what} failed")

    settled = FakeCommunicators.wait
    monkeypatch.setattr(FakeCommunicators, "wait", fail)
    for cases in _run("nccl/dedup"):
        assert outcome(cases)["dispatch"] == ("error", "NCCL's first meeting of rank 2 failed")
    assert gpu.machine.left() == []


@pytest.mark.parametrize("kernel", ["two_hop/staged", "nccl/dedup"])
def test_what_nccl_finds_while_kernels_run_ends_the_run_of_all(
    gpu: FakeGpu,
    made: dict[int, FakeCommunicators],
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
) -> None:
    def look(self: FakeCommunicators) -> None:
        # A meeting of a run is under way: the first one is of the start.
        if self is made[2] and len(self.meetings) > 1:
            self.failure = "NCCL failed on rank 2: socket closed"
        plain(self)

    plain = FakeCommunicators.check
    monkeypatch.setattr(FakeCommunicators, "check", look)
    found = _run(kernel)
    assert "NCCL failed on rank 2: socket closed" in str(found[2])
    assert made[2].is_aborted
    assert gpu.machine.left() == []


def test_the_first_rank_of_each_host_compiles_for_it(gpu: FakeGpu) -> None:
    from kernels.devices.cuda_code import first_then_all

    order: list[int] = []

    def work(ranks: Any) -> None:  # noqa: ANN401
        first_then_all(ranks, lambda: order.append(ranks.rank) or {})

    run_ranks(4, work, _HOSTS)
    assert sorted(order[:2]) == [0, 2]
    assert sorted(order[2:]) == [1, 3]


@pytest.mark.parametrize(
    ("hosts", "nodes", "per_node", "reason"),
    [
        ([0, 0, 1, 1], 2, 2, None),
        ([0, 0, 0, 0], 2, 2, None),
        # The first ranks of a larger job.
        ([0, 0, 1, 1], 1, 2, None),
        ([0, 0, 1, 1], 2, 1, None),
        ([0, 0, 1, 2], 2, 1, None),
        (
            [0, 0, 1, 1],
            1,
            4,
            "its 4 ranks are 2 and 2 on 2 hosts, not 4 on one: give --nodes 2 --ranks-per-node 2, "
            "or with --nodes 1 at most --ranks-per-node 2",
        ),
        (
            [0, 0, 1, 1],
            4,
            1,
            "its 4 ranks are 2 and 2 on 2 hosts, not 1 on each of 4: give --nodes 2 "
            "--ranks-per-node 2, or with --nodes 1 at most --ranks-per-node 2",
        ),
        (
            [0, 0, 0, 1],
            2,
            2,
            "its 4 ranks are 3 and 1 on 2 hosts, not 2 on each of 2: launch as many ranks on each "
            "host (srun --ntasks-per-node)",
        ),
        (
            [0, 1, 0, 1],
            1,
            2,
            "its 2 ranks are 1 and 1 on 2 hosts, not 2 on one: launch consecutive ranks on each "
            "host (srun --distribution=block, mpirun --map-by slot)",
        ),
        (
            [0, 1, 0, 1],
            2,
            2,
            "rank 2 is on the host of rank 0 and rank 1 is not: launch consecutive ranks on each "
            "host (srun --distribution=block, mpirun --map-by slot)",
        ),
        (
            [0, 1, 0, 1],
            2,
            1,
            None,
        ),
    ],
)
def test_nodes_are_hosts(hosts: list[int], nodes: int, per_node: int, reason: str | None) -> None:
    assert refuse_hosts(hosts, nodes, per_node) == reason
