"""NCCL among ranks: budgets, messages, errors and time limits, by both packages that call it."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cuda import install_cuda, remove
from fake_cupy_nccl import NcclError
from fake_gpus import FakeMachine
from fake_nccl import install_nccl
from fake_nccl_world import FakeNccl
from fake_ranks import run_ranks, this_process

from comms.cuda.cards import choose_cards, use_card
from comms.cuda.nccl import Binding, Budget, Communicators, Part
from comms.cuda.nccl_library import nccl_version
from comms.cuda.windows import IpcWindows, NcclWindows
from comms.errors import EpbenchError, RuntimeFailure, TimeoutFailure, UsageError
from comms.memory import Layout
from comms.mpi.ranks import Ranks

LAYOUT = Layout({"send": 3000, "recv": 3000})
STREAM = 5


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Eight GPUs."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return machine


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeNccl:
    """NCCL between them."""
    return install_nccl(monkeypatch, machine)


Work = Callable[[Ranks, Communicators], Any]


def _run(
    size: int, work: Work, *, binding: Binding = "nccl4py", limit_s: float = 10.0
) -> list[Any]:
    def begin(ranks: Ranks) -> object:
        use_card(choose_cards(ranks)[ranks.rank])
        return work(ranks, Communicators(ranks, binding=binding, limit_s=limit_s))

    return run_ranks(size, begin)


def _one_sentence(found: list[Any], kind: type[EpbenchError]) -> str:
    assert all(type(error) is kind for error in found), found
    (sentence,) = {str(error) for error in found}
    return sentence


def _part(windows: IpcWindows, rank: int, peer: int, counts: list[list[int]]) -> Part:
    layout = windows.layout
    return Part(
        peer,
        windows.base(rank) + layout["send"].offset + sum(counts[rank][:peer]),
        counts[rank][peer],
        windows.base(rank) + layout["recv"].offset + sum(row[rank] for row in counts[:peer]),
        counts[peer][rank],
    )


@pytest.mark.parametrize("binding", ["nccl4py", "cupy"])
def test_messages_of_any_sizes(machine: FakeMachine, nccl: FakeNccl, binding: Binding) -> None:
    counts = [[5, 0, 7], [100, 3, 0], [0, 0, 0]]

    def work(ranks: Ranks, communicators: Communicators) -> bytes:
        rank = ranks.rank
        windows = IpcWindows(LAYOUT, ranks)
        windows.write(rank, "send", np.full(300, rank + 1, np.uint8))
        parts = [_part(windows, rank, peer, counts) for peer in range(3)]
        communicators.of(None).exchange(parts, STREAM)
        communicators.wait(STREAM, "the exchange")
        received = windows.read(rank, "recv")[: sum(row[rank] for row in counts)]
        windows.close()
        communicators.close()
        communicators.close()
        return received.tobytes()

    found = _run(3, work, binding=binding)
    assert found == [b"\1" * 5 + b"\2" * 100, b"\2" * 3, b"\1" * 7]
    # The first group connects all with all; no bytes make no message.
    groups = [calls for rank, calls in nccl.groups if rank == 2]
    assert groups[-1] == ["recv 7 from 0"]
    assert len(groups[0]) == 6
    assert sorted(nccl.ended) == [("destroy", rank) for rank in range(3)]
    assert machine.left() == []


@pytest.mark.parametrize("binding", ["nccl4py", "cupy"])
def test_collectives(machine: FakeMachine, nccl: FakeNccl, binding: Binding) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> tuple[list[int], list[int]]:
        windows = IpcWindows(LAYOUT, ranks)
        rank = ranks.rank
        send, recv = (windows.base(rank) + LAYOUT[name].offset for name in ("send", "recv"))
        windows.write(rank, "send", np.arange(10 * rank, 10 * rank + 3, dtype=np.uint8))
        communicator = communicators.of(None)
        communicator.alltoall(send, recv, 1, STREAM)
        communicators.wait(STREAM, "the exchange")
        one = windows.read(rank, "recv")[:3].tolist()
        communicator.allgather(send, recv, 2, STREAM)
        communicators.wait(STREAM, "the exchange")
        two = windows.read(rank, "recv")[:6].tolist()
        windows.close()
        communicators.close()
        return one, two

    for rank, (one, two) in enumerate(_run(3, work, binding=binding)):
        assert one == [rank, 10 + rank, 20 + rank]
        assert two == [0, 1, 10, 11, 20, 21]


def test_sums(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        communicators.of(None).reduce_scatter(1, 2, 3, "bfloat16", STREAM)

    _run(1, work)
    assert nccl.groups[-1] == (0, ["reduce_scatter (3, 9, 0)"])


def test_a_communicator_for_each_budget(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        made = [communicators.of(budget) for budget in (None, 8, 16, 8)]
        assert made[1] is made[3]
        assert len(set(made)) == 3
        communicators.close()

    assert _run(2, work) == [None, None]
    assert [config for rank, config in nccl.configs if rank == 1] == [
        {},
        {"min_ctas": 8, "max_ctas": 8},
        {"min_ctas": 16, "max_ctas": 16},
    ]
    assert len(nccl.ended) == 6
    # NCCL takes the GPU that is current where it is called, which is another thread.
    assert all(rank == device for rank, device in nccl.devices)


@pytest.mark.parametrize(("budget", "words"), [(0, "not 0"), (33, "1 to 32 CTAs, not 33")])
def test_budgets_that_nccl_does_not_take(
    machine: FakeMachine, nccl: FakeNccl, budget: int, words: str
) -> None:
    found = _run(2, lambda _, communicators: communicators.of(budget))
    assert words in _one_sentence(found, UsageError)


def test_cupy_keeps_to_no_budget(machine: FakeMachine, nccl: FakeNccl) -> None:
    found = _run(2, lambda _, communicators: communicators.of(8), binding="cupy")
    sentence = _one_sentence(found, UsageError)
    assert sentence.startswith("CuPy's binding of NCCL sets no CTAs, so that it cannot keep to 8")
    assert "nccl4py" in sentence


def test_a_variable_that_overrides_budgets(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_MAX_CTAS", "4")
    found = _run(2, lambda _, communicators: communicators.of(8))
    assert _one_sentence(found, UsageError).startswith("NCCL_MAX_CTAS=4 sets NCCL's CTAs")
    assert _run(2, lambda _, communicators: bool(communicators.of(None))) == [True, True]


def test_without_nccl4py_its_remedy_is_told(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch, "nccl")
    sentence = _one_sentence(_run(2, lambda *_: None), RuntimeFailure)
    assert sentence.startswith(
        "NCCL cannot be loaded by nccl4py: nccl4py is not installed: pip install"
    )


def test_cupy_without_the_library(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "available", False)
    found = _run(2, lambda *_: None, binding="cupy")
    assert "NCCL cannot be loaded by CuPy" in _one_sentence(found, RuntimeFailure)


def test_an_nccl4py_that_calls_otherwise(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["nccl.bindings.nccl"].send, "__doc__", "send(*args)")
    found = _run(2, lambda *_: None)
    assert "nccl4py 0.6.0 calls send as 'send(*args)'" in _one_sentence(found, RuntimeFailure)


def test_versions_differ(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.version = {-1: 23203, 1: 22807}
    sentence = _one_sentence(_run(3, lambda *_: None), RuntimeFailure)
    assert sentence == "rank 0 has NCCL 2.32.3 and rank 1 2.28.7: install the same everywhere"
    assert nccl_version(22906) == "2.29.6"


# What fails


def test_a_rank_that_never_comes(machine: FakeMachine, nccl: FakeNccl) -> None:
    nccl.absent = {1}
    begun = time.monotonic()
    found = _run(3, lambda _, communicators: communicators.of(4), limit_s=0.5)
    assert "NCCL's start on rank 0 has not ended within 0.5 s" in _one_sentence(
        found, TimeoutFailure
    )
    assert time.monotonic() - begun < 5


def test_a_start_that_fails_on_one_rank(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sys.modules["nccl.bindings.nccl"].NCCLError
    core = sys.modules["nccl.core"]
    init = core.Communicator.init

    def fail(*args: Any) -> Any:  # noqa: ANN401
        made = init(*args)
        if this_process().rank == 1:
            raise error(2)
        return made

    monkeypatch.setattr(core.Communicator, "init", fail)
    found = _run(3, lambda _, communicators: communicators.of(4))
    sentence = _one_sentence(found, RuntimeFailure)
    assert sentence.startswith("NCCL cannot start on rank 1 (4 CTAs): NCCL failed: a system call")
    assert sorted(nccl.ended) == [("abort", 0), ("abort", 2)]


def test_a_message_that_never_comes(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        communicator = communicators.of(None)
        windows = IpcWindows(LAYOUT, ranks)
        if ranks.rank == 0:
            communicator.exchange([Part(1, 0, 0, windows.base(0), 8)], STREAM)
        communicators.wait(STREAM, "the dispatch")

    found = _run(2, work, limit_s=0.3)
    assert isinstance(found[0], TimeoutFailure)
    assert str(found[0]).startswith("the dispatch has not ended within 0.3 s on rank 0")
    assert ("abort", 0) in nccl.ended


def test_an_error_in_the_background(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        communicators.of(4)
        ranks.comm.Barrier()
        nccl.errors = {1: 6}
        ranks.comm.Barrier()
        communicators.wait(STREAM, "the dispatch")

    found = _run(2, work)
    assert found[0] is None
    assert str(found[1]) == (
        "NCCL failed on rank 1 (4 CTAs): another rank has failed, or a link or the network to it "
        "(socket closed)"
    )
    assert nccl.ended == [("abort", 1)]


def test_an_error_of_work_that_does_not_end(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        communicator = communicators.of(None)
        windows = IpcWindows(LAYOUT, ranks)
        communicator.exchange([Part(0, 0, 0, windows.base(0), 8)], STREAM)
        nccl.errors = {0: 6}
        communicators.wait(STREAM, "the dispatch")

    begun = time.monotonic()
    (error,) = _run(1, work, limit_s=60)
    assert "another rank has failed" in str(error)
    assert time.monotonic() - begun < 10


def test_an_error_in_the_background_as_cupy_says(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(_: Ranks, communicators: Communicators) -> None:
        communicators.of(None)
        nccl.errors = {0: 6}
        communicators.check()

    (error,) = _run(1, work, binding="cupy")
    assert "another rank has failed" in str(error)


def test_a_message_that_cupy_refuses_ends_its_group(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NcclError(4)

    def work(_: Ranks, communicators: Communicators) -> int:
        communicator = communicators.of(None)
        binding = sys.modules["cupy.cuda.nccl"]
        monkeypatch.setattr(binding.NcclCommunicator, "send", refuse)
        with pytest.raises(NcclError):
            communicator.alltoall(0, 0, 8, STREAM)
        return int(this_process().state["depth"])

    assert _run(1, work, binding="cupy") == [0]


def test_a_kernel_that_fails(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(_: Ranks, communicators: Communicators) -> None:
        communicators.of(None)
        machine.faults["streamQuery", 0] = 719
        communicators.wait(STREAM, "the dispatch")

    (error,) = _run(1, work)
    assert str(error).startswith("the dispatch: a kernel failed")
    assert nccl.ended == [("abort", 0)]


def test_an_abort_that_does_not_end(
    machine: FakeMachine, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comms.cuda.nccl._ABORT_LIMIT_S", 0.2)
    calls = sys.modules["nccl.bindings.nccl"]
    monkeypatch.setattr(calls, "comm_abort", lambda _: time.sleep(600))

    def work(_: Ranks, communicators: Communicators) -> None:
        communicators.of(None)
        communicators.abort()
        communicators.abort()
        communicators.close()

    assert _run(1, work) == [None]


# Copy engines


def _zero(budget: Budget = "zero") -> Work:
    return lambda _, communicators: communicators.of(budget) and None


def test_copy_engines_serve_windows_of_nccl(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> list[int]:
        windows = NcclWindows(LAYOUT, ranks, communicators, zero=True)
        communicator = communicators.of("zero")
        rank = ranks.rank
        send, recv = (windows.base(rank) + LAYOUT[name].offset for name in ("send", "recv"))
        windows.write(rank, "send", np.array([10 * rank, 10 * rank + 1], np.uint8))
        communicator.alltoall(send, recv, 1, STREAM)
        communicators.wait(STREAM, "the exchange")
        received = windows.read(rank, "recv")[:2].tolist()
        windows.close()
        communicators.close()
        return received

    assert _run(2, work) == [[0, 10], [1, 11]]
    assert nccl.configs == [(rank, {"cta_policy": 2}) for rank, _ in nccl.configs]
    assert machine.left() == []


def test_copy_engines_serve_no_other_memory(machine: FakeMachine, nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators) -> None:
        windows = IpcWindows(LAYOUT, ranks)
        base = windows.base(ranks.rank)
        communicators.of("zero").alltoall(base, base + 100, 1, STREAM)

    assert "use --memory nccl" in _one_sentence(_run(2, work), UsageError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": {-1: 22906}}, "NCCL is older than 2.29.7"),
        ({"teams": 2, "version": {-1: 23005}}, "NCCL is older than 2.30.6"),
        ({"teams": 2}, "RMA over the network is off"),
    ],
)
def test_an_nccl_whose_copy_engines_would_not_be_used(
    machine: FakeMachine, nccl: FakeNccl, change: dict[str, Any], words: str
) -> None:
    for name, value in change.items():
        setattr(nccl, name, value)
    found = _run(2, lambda _, communicators: communicators.of("zero"))
    assert words in _one_sentence(found, UsageError)
    # It would run on SMs, without a word; and it is not kept for the next that asks.
    assert sorted(nccl.ended) == [("abort", 0), ("abort", 1)]


def test_copy_engines_of_a_driver(machine: FakeMachine, nccl: FakeNccl) -> None:
    real = machine.begin
    machine.begin = lambda name: None  # type: ignore[method-assign]
    machine.driver = 12040
    found = _run(1, _zero())
    assert "the driver is of CUDA 12.4, not 12.5" in _one_sentence(found, UsageError)
    machine.begin = real  # type: ignore[method-assign]


@pytest.mark.parametrize("call", ["exchange", "reduce_scatter"])
def test_what_copy_engines_do_not_do(machine: FakeMachine, nccl: FakeNccl, call: str) -> None:
    def work(_: Ranks, communicators: Communicators) -> None:
        communicator = communicators.of("zero")
        if call == "exchange":
            communicator.exchange([], STREAM)
        else:
            communicator.reduce_scatter(0, 0, 0, "float32", STREAM)

    assert isinstance(_run(1, work)[0], AssertionError)
