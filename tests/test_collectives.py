"""Plans of exchanges against the oracle's routing, and what libraries do with them, by fakes."""

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from fake_nccl import install_nccl
from fake_nccl_world import FakeNccl
from fake_ranks import run_ranks, this_process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.expand import expand
from bench.suites import SUITES
from bench.traffic.plan import Plan
from bench.workloads.routing import Routing
from bench.workloads.whole_numbers import whole_numbers
from comms.collectives import Collectives, Rows, RowSplits, Wanted, check_bounds, starts
from comms.cuda.cards import choose_cards, use_card
from comms.cuda.collectives import NcclCollectives
from comms.cuda.libraries import mpi_collectives, nccl_collectives, refuse_library
from comms.cuda.nccl import Communicators
from comms.cuda.streams import StreamMemory, plain_wait
from comms.cuda.windows import IpcWindows
from comms.errors import RuntimeFailure, TimeoutFailure
from comms.memory import Layout
from comms.mpi.collectives import HostMemory, MpiCollectives
from comms.mpi.cuda_aware import cuda_support
from comms.mpi.ranks import Ranks
from kernels.floats import from_bf16, to_bf16
from kernels.nccl_like.constants import LIBRARY_SMS
from kernels.packing import exchange
from kernels.protocol import MOST_WHOLE, HostCall, HostLaunch
from kernels.registry import find_protocol
from kernels.routing_index import RoutingIndex
from kernels.rows import RowLayout
from kernels.shape import Shape
from kernels.two_hop.staged import exchange as staged

STREAM = 5
WORDS = 4096
_QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Shape, Routing]:
    """Worlds of up to 6 ranks, some without tokens, with masked selections and hot ranks."""
    num_nodes, ranks_per_node = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)]))
    num_experts = draw(st.integers(1, 9))
    num_topk = draw(st.integers(1, min(num_experts, 4)))
    most = draw(st.integers(0, 6))
    world_size = num_nodes * ranks_per_node
    tokens = [draw(st.integers(0, most)) for _ in range(world_size)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    hot = draw(st.booleans())
    topk_idx = []
    for count in tokens:
        rows = [rng.permutation(num_experts)[:num_topk] for _ in range(count)]
        idx = np.array(rows, np.int32).reshape(count, num_topk)
        if hot:
            idx = np.sort(idx, axis=1)
        topk_idx.append(np.where(rng.random(idx.shape) < 0.3, -1, idx).astype(np.int32))
    weights = [np.ones(idx.shape, np.float32) for idx in topk_idx]
    shape = Shape(num_nodes, ranks_per_node, most, 64, num_experts, num_topk, 2)
    return shape, Routing(topk_idx, weights)


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    """NCCL between eight GPUs."""
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    return install_nccl(monkeypatch, machine)


Work = Callable[[Ranks, Communicators, Callable[..., Any]], Any]


def _run(size: int, work: Work, limit_s: float = 10.0) -> list[Any]:
    """Run ranks with communicators, and buffers of their GPUs by name."""

    def begin(ranks: Ranks) -> object:
        use_card(choose_cards(ranks)[ranks.rank])
        names = ("block_totals", "recv_counts", "pair_begins", "all_counts", "send_begins")
        names += ("recv_begins", "own_counts", "from_x", "into_x")
        windows = IpcWindows(Layout(dict.fromkeys(names, 4 * WORDS)), ranks)

        def view(name: str, dtype: Any) -> Any:  # noqa: ANN401
            # As CuPy's, it shares the GPU's memory.
            return windows.view(ranks.rank, name, dtype)

        communicators = Communicators(ranks, limit_s=limit_s)
        try:
            return work(ranks, communicators, view)
        finally:
            communicators.abort()
            windows.close()

    return run_ranks(size, begin)


def _read(library: Collectives, buffer: Any) -> Any:  # noqa: ANN401
    library.fetch([buffer])
    (values,) = library.fetched()
    return values


def _host(ranks: Ranks, shape: Shape, library: Collectives, view: Any, variant: str) -> HostCall:  # noqa: ANN401
    protocol = find_protocol("nccl", variant)
    comm: Any = ranks.comm
    return HostCall(comm, shape, protocol.settings(shape), view, library, {})


def _check_splits(splits: list[RowSplits], copies: Any) -> None:  # noqa: ANN401
    """Every rank sends what the routing says, one message after another, and gets it so."""
    for rank, own in enumerate(splits):
        assert own.send_counts.tolist() == copies[rank].tolist()
        assert own.recv_counts.tolist() == copies[:, rank].tolist()
        assert own.send_begins.tolist() == starts(copies[rank]).tolist()
        assert own.recv_begins.tolist() == starts(copies[:, rank]).tolist()
        assert own.back().send_begins is own.recv_begins
        assert own.back().recv_counts is own.send_counts


@_QUICK
@given(world=worlds())
def test_counts_of_ranks(nccl: FakeNccl, world: tuple[Shape, Routing]) -> None:
    shape, routing = world
    plan, index = Plan.of(routing, shape), RoutingIndex.build(routing, shape, "rank")

    def work(ranks: Ranks, communicators: Communicators, view: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401
        rank = ranks.rank
        library = nccl_collectives(communicators, Wanted(), rank=rank, stream=STREAM)
        host = _host(ranks, shape, library, view, "dedup")
        view("block_totals", np.int32)[: shape.world_size] = plan.copies[rank]
        exchange.counts(host)
        exchange.sizes(host)
        # Rows that name their source and place travel as the plan says.
        num_rows = int(plan.copies[rank].sum())
        sent = view("from_x", np.int32)
        sent[:num_rows] = 1000 * rank + np.arange(num_rows)
        rows = [Rows(sent.view(np.uint8), view("into_x", np.uint8), 4)]
        library.exchange(rows, host.kept["splits"])
        received = _read(library, view("into_x", np.int32))[: index.num_recv(rank)]
        return host.kept["splits"], _read(library, view("recv_counts", np.int32)), received

    found = _run(shape.world_size, work)
    _check_splits([one[0] for one in found], plan.copies)
    for rank, (_, recv_counts, received) in enumerate(found):
        assert recv_counts[: shape.world_size].tolist() == plan.copies[:, rank].tolist()
        expected = [
            1000 * source + int(plan.copies[source, :rank].sum()) + place
            for source in range(shape.world_size)
            for place in range(plan.copies[source, rank])
        ]
        assert received.tolist() == expected
    # The start's messages are of 16 bytes; empty ones are none, and own rows are copied.
    for rank, calls in nccl.groups:
        if not all(call.split()[1] == "16" for call in calls):
            assert not any(call.split()[-1] == str(rank) for call in calls), calls
        assert not any(call.split()[1] == "0" for call in calls), calls
    nccl.groups.clear()


@_QUICK
@given(world=worlds())
def test_counts_of_experts(nccl: FakeNccl, world: tuple[Shape, Routing]) -> None:
    shape, routing = world
    index = RoutingIndex.build(routing, shape, "selection")
    size, width = shape.world_size, shape.experts_per_rank
    by_column = [
        np.bincount(idx[idx >= 0], minlength=size * width).astype(np.int32)
        for idx in routing.topk_idx
    ]

    def work(ranks: Ranks, communicators: Communicators, view: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401
        library = nccl_collectives(communicators, Wanted(), rank=ranks.rank, stream=STREAM)
        host = _host(ranks, shape, library, view, "selection")
        view("block_totals", np.int32)[: size * width] = by_column[ranks.rank]
        exchange.counts(host)
        exchange.sizes(host)
        tables = [_read(library, view(name, np.int32)) for name in ("recv_counts", "pair_begins")]
        return host.kept["splits"], *(
            table[: size * width].reshape(size, width) for table in tables
        )

    found = _run(size, work)
    _check_splits([one[0] for one in found], Plan.of(routing, shape).selections)
    for rank, (_, recv_counts, pair_begins) in enumerate(found):
        counts = index.recv_counts(rank)
        assert recv_counts.tolist() == counts.tolist()
        assert pair_begins.tolist() == starts(counts.T.ravel()).reshape(width, size).T.tolist()


@_QUICK
@given(world=worlds())
def test_counts_of_equal_splits(nccl: FakeNccl, world: tuple[Shape, Routing]) -> None:
    shape, routing = world
    copies = Plan.of(routing, shape).copies

    def work(ranks: Ranks, communicators: Communicators, view: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401
        library = nccl_collectives(communicators, Wanted(), rank=ranks.rank, stream=STREAM)
        host = _host(ranks, shape, library, view, "padded")
        view("block_totals", np.int32)[: shape.world_size] = copies[ranks.rank]
        exchange.counts_of_all(host)
        exchange.equal_sizes(host)
        names = ("recv_counts", "recv_begins")
        return host.kept["splits"], *(_read(library, view(name, np.int32)) for name in names)

    size, most = shape.world_size, int(copies.max())
    for rank, (splits, recv_counts, begins) in enumerate(_run(size, work)):
        assert all(column.tolist() == [most] * size for column in splits[1::2])
        assert begins[: size + 1].tolist() == [most * peer for peer in range(size + 1)]
        assert recv_counts[:size].tolist() == copies[:, rank].tolist()


@settings(max_examples=200, deadline=None)
@given(world=worlds())
def test_a_rail_takes_one_copy_by_node_and_brings_it_home(world: tuple[Shape, Routing]) -> None:
    shape, routing = world
    plan = Plan.of(routing, shape)
    size, per_node = shape.world_size, shape.ranks_per_node
    splits = [staged.rail_splits(plan.node_copies, rank, shape) for rank in range(size)]
    # What a rank stages: its tokens of each node, named (source, token), in the order of nodes.
    owner = [np.where(idx >= 0, idx // shape.experts_per_rank, -1) for idx in routing.topk_idx]
    tokens_of = [
        [
            [(source, t) for t in range(len(ranks)) if (ranks[t] // per_node == node).any()]
            for node in range(shape.num_nodes)
        ]
        for source, ranks in enumerate(owner)
    ]
    arrived: list[dict[int, tuple[int, int]]] = [{} for _ in range(size)]
    for source in range(size):
        row = [each for node in tokens_of[source] for each in node]
        for target in range(size):
            mine, theirs = splits[source], splits[target]
            assert mine.send_counts[target] == theirs.recv_counts[source]
            is_rail = source % per_node == target % per_node and source != target
            assert is_rail or not mine.send_counts[target]
            for step in range(mine.send_counts[target]):
                place = int(theirs.recv_begins[source]) + step
                assert place not in arrived[target]
                arrived[target][place] = row[int(mine.send_begins[target]) + step]
    for target, rows in enumerate(arrived):
        node, local = divmod(target, per_node)
        expected = [
            token
            for other in range(shape.num_nodes)
            if other != node
            for token in tokens_of[other * per_node + local][node]
        ]
        assert [rows[place] for place in range(len(rows))] == expected


# What fails


def _equal(ranks: Ranks, communicators: Communicators, view: Any) -> Any:  # noqa: ANN401
    """Exchange 3 rows between every two ranks, and read them."""
    library = nccl_collectives(communicators, Wanted(), rank=ranks.rank, stream=STREAM)
    ranks.comm.Barrier()
    counts = np.full(ranks.world_size, 3)
    splits = RowSplits(starts(counts), counts, starts(counts), counts)
    library.exchange([Rows(view("from_x", np.uint8), view("into_x", np.uint8), 16)], splits)
    return _read(library, view("into_x", np.uint8))


def test_nccl_that_fails_in_the_middle(nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sys.modules["nccl.bindings.nccl"]
    send, depth = calls.send, {}

    def fail(*args: Any) -> None:  # noqa: ANN401
        # The communicator's first messages are the start's.
        state = this_process().state
        state["sent"] = state.get("sent", 0) + 1
        if this_process().rank == 1 and state["sent"] == 5:
            raise calls.NCCLError(6)
        send(*args)

    fail.__doc__ = send.__doc__
    monkeypatch.setattr(calls, "send", fail)

    def work(ranks: Ranks, communicators: Communicators, view: Any) -> Any:  # noqa: ANN401
        try:
            return _equal(ranks, communicators, view)
        finally:
            depth[ranks.rank] = this_process().state["depth"]

    found = _run(3, work, limit_s=0.5)
    assert str(found[1]) == (
        "NCCL's send and receive: NCCL failed: another rank has failed, or a link or the network "
        "to it (result 6)"
    )
    assert isinstance(found[1], RuntimeFailure)
    # Its message to rank 2 was on its way, that to rank 0 was not.
    assert isinstance(found[0], TimeoutFailure)
    assert found[2] is not None
    assert depth == {0: 0, 1: 0, 2: 0}


def test_a_rank_that_leaves(nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators, view: Any) -> Any:  # noqa: ANN401
        if ranks.rank == 2:
            nccl_collectives(communicators, Wanted(), rank=2, stream=STREAM)
            ranks.comm.Barrier()
            return None
        return _equal(ranks, communicators, view)

    begun = time.monotonic()
    found = _run(3, work, limit_s=0.3)
    assert found[2] is None
    for rank in (0, 1):
        assert isinstance(found[rank], TimeoutFailure)
        assert f"has not ended within 0.3 s on rank {rank}" in str(found[rank])
    assert time.monotonic() - begun < 10


def test_splits_past_a_buffer() -> None:
    small, large = np.zeros(64, np.uint8), np.zeros(640, np.uint8)
    zero, five = np.array([0, 0]), np.array([4, 1])
    ahead = RowSplits(np.array([0, 4]), five, np.array([0, 0]), zero)
    check_bounds([Rows(large, small, 16)], ahead)
    with pytest.raises(AssertionError, match="most_sent=5"):
        check_bounds([Rows(small, large, 16)], ahead)
    with pytest.raises(AssertionError, match="most_got=5"):
        check_bounds([Rows(large, small, 16)], ahead.back())


class _Recorder:
    def __init__(self) -> None:
        self.parts: list[Any] = []

    def exchange(self, parts: list[Any], stream: int) -> None:
        self.parts += parts


def _far(address: int) -> Any:  # noqa: ANN401
    return SimpleNamespace(data=SimpleNamespace(ptr=address), nbytes=1 << 50)


def test_bytes_beyond_32_bits() -> None:
    recorder, counts = _Recorder(), np.array([0, 3 << 20])
    splits = RowSplits(np.array([0, 1 << 20]), counts, np.array([0, 5 << 20]), counts)
    library = NcclCollectives(recorder, StreamMemory(STREAM, plain_wait), 0)  # type: ignore[arg-type]
    library.exchange([Rows(_far(1 << 40), _far(1 << 41), 8192)], splits)
    ((peer, send_addr, send_bytes, recv_addr, recv_bytes),) = recorder.parts
    assert (peer, send_bytes, recv_bytes) == (1, 3 << 33, 3 << 33)
    assert (send_addr, recv_addr) == ((1 << 40) + (1 << 33), (1 << 41) + (5 << 33))


def test_more_rows_than_mpi_counts() -> None:
    comm: Any = None
    counts = np.array([0, 1 << 31])
    splits = RowSplits(np.array([0, 0]), counts, np.array([0, 0]), np.array([0, 0]))
    far = SimpleNamespace(nbytes=1 << 50)
    with pytest.raises(RuntimeFailure, match="MPI counts at most 2147483647 rows, got 2147483648"):
        MpiCollectives(comm, HostMemory()).exchange([Rows(far, far, 16)], splits)
    with pytest.raises(RuntimeFailure, match="no type for BF16"):
        MpiCollectives(comm, HostMemory()).sum_scatter(Rows(far, far, 16), 1)


# The order of a stream


def test_a_table_written_twice_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    table, other = (np.zeros(4, np.int32).view(_CardArray) for _ in range(2))
    looks: list[str] = []
    runtime = sys.modules["cupy.cuda.runtime"]
    event_query = runtime.eventQuery
    monkeypatch.setattr(runtime, "streamQuery", lambda stream: looks.append("stream") or 0)
    monkeypatch.setattr(
        runtime, "eventQuery", lambda event: looks.append("event") or event_query(event)
    )
    memory = StreamMemory(STREAM, plain_wait)
    memory.write(table, np.array([1, 2], np.int32))
    memory.write(other, np.array([5], np.int32))
    assert looks == []
    memory.write(table, np.array([3], np.int32))
    assert looks == ["stream"]
    # What was written before a copy has been read when that is done, and not before.
    memory.fetch([table, other])
    memory.write(table, np.array([4], np.int32))
    assert looks == ["stream", "stream"]
    found = memory.fetched()
    assert [values.tolist() for values in found] == [[3, 2, 0, 0], [5, 0, 0, 0]]
    memory.write(other, np.array([6], np.int32))
    memory.fetch([other])
    assert memory.fetched()[0].tolist() == [6, 0, 0, 0]
    looks.clear()
    memory.write(other, np.array([7], np.int32))
    assert looks == []
    memory.clear(table)
    assert table.tolist() == [0, 0, 0, 0]
    memory.close()
    memory.close()
    assert machine.left() == []


def test_counts_are_waited_for_alone(nccl: FakeNccl) -> None:
    def work(ranks: Ranks, communicators: Communicators, view: Any) -> Any:  # noqa: ANN401
        library = nccl_collectives(communicators, Wanted(), rank=ranks.rank, stream=STREAM)
        view("from_x", np.int32)[:2] = 10 * ranks.rank, 10 * ranks.rank + 1
        library.exchange_equal([Rows(view("from_x", np.uint8), view("into_x", np.uint8), 4)], 1)
        library.fetch([view("into_x", np.int32)[:2]])
        # Work that never ends comes after the copy.
        this_process().state["pending"][STREAM].append(lambda: False)
        return library.fetched()[0].tolist()

    assert _run(2, work, limit_s=0.3) == [[0, 10], [1, 11]]


def test_long_work_is_waited_for_by_who_knows_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda(monkeypatch, FakeMachine())
    monkeypatch.setattr("comms.cuda.streams._SPIN_S", 0.01)
    monkeypatch.setattr(sys.modules["cupy.cuda.runtime"], "streamQuery", lambda stream: 600)
    asked: list[tuple[int, str]] = []

    def wait(stream: int, what: str) -> None:
        asked.append((stream, what))

    StreamMemory(STREAM, wait).settle()
    assert asked == [(STREAM, "a library's call or the kernel before it")]


def test_a_kernel_that_fails_before_mpi_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    monkeypatch.setattr("comms.cuda.streams._SPIN_S", 0.0)
    machine.faults = {("streamQuery", 0): 719, ("streamSynchronize", 0): 719}
    comm: Any = None
    with pytest.raises(RuntimeFailure, match="the kernel before it: a kernel failed"):
        mpi_collectives(comm, STREAM).exchange_equal([], 1)


@pytest.mark.parametrize("status", [0, 719])
def test_mpi_gives_back_what_the_host_kept(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    machine = FakeMachine()
    install_cuda(monkeypatch, machine)
    comm: Any = None
    library = mpi_collectives(comm, STREAM)
    table = np.zeros(4, np.int32).view(_CardArray)
    library.write(table, np.array([1], np.int32))
    library.fetch([table])
    library.fetched()
    if status:
        # After a kernel has failed nothing can be freed.
        machine.faults = {(call, 0): status for call in ("freeHost", "eventDestroy")}
    library.close()
    assert len(machine.left()) == (2 if status else 0)
    assert machine.calls[-1] == ("eventDestroy", 0)


class _CardArray(np.ndarray[Any, Any]):
    @property
    def data(self) -> Any:  # noqa: ANN401
        return SimpleNamespace(ptr=self.ctypes.data)


# Which library, and what it may take


@pytest.mark.parametrize(
    ("num_sms", "max_ctas"), [(1, 1), (2, 2), (3, 2), (20, 16), (24, 16), (32, 32), (64, 32)]
)
def test_a_budget_is_never_passed(num_sms: int, max_ctas: int) -> None:
    assert Wanted.within(num_sms) == Wanted(max_ctas=max_ctas)
    shape = Shape(1, 8, 16, 64, 8, 2, num_sms)
    # At what stands for NCCL's own choice nothing limits it.
    wanted = Wanted() if num_sms >= LIBRARY_SMS else Wanted(max_ctas=max_ctas)
    for variant in ("dedup", "selection", "padded", "allgather", "reduce_scatter"):
        protocol = find_protocol("nccl", variant)
        assert protocol.library is not None
        assert protocol.library(shape) == wanted


class _Mpi:
    """An MPI library with some of the calls that tell what it takes."""

    def __init__(self, name: str, answer: int, failed: int = 0) -> None:
        def query(kind: Any, found: Any) -> int:  # noqa: ANN401
            assert kind.value == 0
            found._obj.value = answer
            return failed

        setattr(self, name, query if name == "MPIX_GPU_query_support" else lambda: answer)


@pytest.mark.parametrize("name", ["MPIX_GPU_query_support", "MPIX_Query_cuda_support"])
@pytest.mark.parametrize("answer", [0, 1])
def test_what_mpi_says_of_itself(name: str, answer: int) -> None:
    assert cuda_support(_Mpi(name, answer)) is bool(answer)


def test_an_mpi_that_says_nothing() -> None:
    assert cuda_support(SimpleNamespace()) is None
    assert cuda_support(_Mpi("MPIX_GPU_query_support", 1, failed=1)) is None


@pytest.mark.parametrize(
    ("support", "words"),
    [(False, "X 1 is not CUDA-aware"), (None, "X 1 does not say whether it is CUDA-aware")],
)
def test_an_mpi_that_takes_no_memory_of_gpus(
    support: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comms.mpi.cuda_aware.cuda_support", lambda library: support)
    reason = refuse_library(Wanted("mpi"), ranks_per_card=1, mpi="X 1")
    assert reason is not None
    assert reason.startswith(words)
    assert refuse_library(Wanted(), ranks_per_card=1, mpi="X 1") is None


def test_an_mpi_that_takes_memory_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comms.mpi.cuda_aware.cuda_support", lambda library: True)
    assert refuse_library(Wanted("mpi"), ranks_per_card=1, mpi="X 1") is None


@pytest.mark.parametrize(("name", "words"), [("own", "NCCL, which refuses two"), ("mpi", "MPI")])
def test_several_ranks_on_a_card(name: Any, words: str) -> None:  # noqa: ANN401
    reason = refuse_library(Wanted(name), ranks_per_card=4, mpi="X 1")
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("variant", ["dedup", "selection", "padded", "copy_engine", "allgather"])
def test_only_counts_are_waited_for(variant: str) -> None:
    protocol = find_protocol("nccl", variant)
    for op, form in (("dispatch", "fresh"), ("dispatch", "cached"), ("combine", "fresh")):
        hosts = [one for one in protocol.launches(op, form) if isinstance(one, HostLaunch)]  # type: ignore[arg-type]
        assert hosts
        assert [one.name for one in hosts if one.waits] == (
            ["sizes"] if (op, form) == ("dispatch", "fresh") and variant != "allgather" else []
        )
    # MPI waits for the stream before each of its calls.
    waits = [
        one.waits
        for one in find_protocol("mpi", "dedup").launches("combine", "fresh")
        if isinstance(one, HostLaunch)
    ]
    assert waits == [True]


def test_copy_engines_reach_one_node() -> None:
    protocol = find_protocol("nccl", "copy_engine")
    assert protocol.library is not None
    assert protocol.library(Shape(1, 8, 16, 64, 8, 2, 8)) == Wanted(zero_ctas=True)
    assert protocol.refuses(Shape(1, 8, 16, 64, 8, 2, 8), "pair", cross_rail="spine") is None
    reason = protocol.refuses(Shape(2, 4, 16, 64, 8, 2, 8), "pair", cross_rail="spine")
    assert "one node only" in reason


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(36)), seed=st.integers(0, 2**32 - 1))
def test_sums_of_whole_numbers_are_the_same_in_every_order(order: list[int], seed: int) -> None:
    layout = RowLayout(40, "bf16", 40)
    rows = np.random.default_rng(seed).integers(0, 256, (36, layout.stride_bytes), np.uint8)
    whole = whole_numbers(rows, layout)
    assert not whole[:, 80:].any()
    values = from_bf16(whole[:, :80].view(np.uint16))
    assert len(np.unique(values)) == 2 * MOST_WHOLE + 1
    assert not np.signbit(values[values == 0]).any()
    total = np.zeros(40, np.float32)
    for row in order:
        # A ring rounds after each rank.
        total = from_bf16(to_bf16(total + values[row]))
    assert total.tolist() == values.sum(axis=0).tolist()


def test_sums_of_whole_numbers_that_bf16_has_not() -> None:
    protocol = find_protocol("nccl", "reduce_scatter")
    shape = Shape(1, 8, 16, 64, 256, 36, 8)
    assert protocol.refuses(shape, "combine", cross_rail="spine") is None
    more = Shape(1, 8, 16, 64, 256, 37, 8)
    assert "sums of 37 rows" in protocol.refuses(more, "combine", cross_rail="spine")


@pytest.mark.parametrize("name", ["cards", "cards-two-nodes"])
def test_suites_of_gpus_hold_nccl_to_budgets_and_to_none(name: str) -> None:
    specs = [spec for spec in expand(SUITES[name].grids) if spec.kernel == "nccl"]
    wanted = {
        (spec.variant, library(spec.shape()).max_ctas)
        for spec in specs
        if (library := spec.protocol().library) is not None
    }
    assert wanted == {("dedup", 8), ("dedup", 16), ("dedup", None), ("selection", None)}
    assert {spec.form for spec in specs} == {"fresh", "cached"}
