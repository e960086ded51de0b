"""The low-latency pair: near its port's bound and what it must take beside, and its refusals."""

import msgspec
import pytest
from kernel_cases import NO_PATH

from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.records.record import Case
from bench.traffic.bounds import HalfOp
from bench.traffic.low_latency import overheads
from kernels.low_latency import FUSED, MAX_SLOT_BYTES, slot_bytes
from kernels.low_latency.streams import Cut, num_streams, parts_between, stream_at
from kernels.shape import Shape

#: A decode batch of DeepSeek-V3 on H800s.
_DECODE = Grid(kernel=("low_latency/fused",), tokens=(128,), num_sms=(20,))


def _shape(num_nodes: int, num_tokens: int = 128) -> Shape:
    return Shape(num_nodes, 8, num_tokens, 7168, 256, 8, num_sms=20)


def _rows(grid: Grid) -> list[Case]:
    (spec,) = expand([grid])
    return run_spec(spec, lambda *_: None)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_time_is_the_bound_and_the_overheads(num_nodes: int) -> None:
    """What remains is the imbalance of the last rows over SMs, and turns at ports that are full."""
    grid = msgspec.structs.replace(_DECODE, nodes=(num_nodes,))
    (spec,) = expand([grid])
    rows = {row.op: row for row in _rows(grid)}
    halves: tuple[HalfOp, ...] = ("dispatch", "combine")
    beside = {
        op: sum(cost.us for cost in overheads(spec.fabric, spec.shape(), op)) for op in halves
    }
    beside["pair"] = sum(beside.values()) + spec.fabric.sm.launch_gap_ns.value / 1000
    for op, us in beside.items():
        row = rows[op]
        assert row.status == "passed"
        assert row.time_us is not None
        assert row.bound_own_us is not None
        least = row.bound_own_us + us
        assert row.bound_own_us < row.time_us <= 1.1 * least, (op, row.time_us, least)


def test_overheads_are_those_of_the_constants() -> None:
    (spec,) = expand([_DECODE])
    dispatch = {cost.name: cost.us for cost in overheads(spec.fabric, _shape(1), "dispatch")}
    assert dispatch["list of a peer's rows"] == pytest.approx(0.27 + 2 * 32 * 0.01)
    assert dispatch["first row through its SM"] == pytest.approx(0.94)
    assert dispatch["acknowledgement and flag"] == pytest.approx(1.5 + 0.01 + 0.0002)
    combine = {cost.name: cost.us for cost in overheads(spec.fabric, _shape(8), "combine")}
    # 56 far ranks, 16 rows to each, a signal for every 4.
    assert combine["entries, counts and signals"] == pytest.approx(56 * 4 * 0.01)
    assert combine["last token's sum by one SM"] == pytest.approx(0.24 + 8 * 14336 / 40_000 + 0.54)


def test_the_halves_are_phases_of_their_own() -> None:
    grid = msgspec.structs.replace(_DECODE, kernel=("low_latency/split",), tokens=(16,))
    phases = [list(row.phases_us or {}) for row in _rows(grid)]
    dispatch, combine = ["dispatch_send", "dispatch_recv"], ["combine_send", "combine_recv"]
    assert phases == [dispatch, combine, dispatch + combine]


def test_more_tokens_than_slots_have_room_for_are_refused_with_the_bytes() -> None:
    fits = max(
        tokens
        for tokens in range(1024, 8192, 64)
        if sum(slot_bytes(_shape(1, tokens), full=True).values()) <= MAX_SLOT_BYTES
    )
    assert FUSED.refuses(_shape(1, fits), "dispatch", cross_rail="spine") is None
    for row in _rows(msgspec.structs.replace(_DECODE, tokens=(fits + 64,))):
        assert row.status == "skipped"
        needed = sum(slot_bytes(_shape(1, fits + 64), full=True).values())
        assert f"take {needed} bytes on each rank, more than {MAX_SLOT_BYTES}" in str(row.reason)


def test_rails_apart_are_refused() -> None:
    assert NO_PATH in str(FUSED.refuses(_shape(2), "combine", cross_rail="forbidden"))
    assert FUSED.refuses(_shape(1), "combine", cross_rail="forbidden") is None


@pytest.mark.parametrize(("num_nodes", "per_node"), [(1, 1), (1, 8), (2, 3), (4, 1), (3, 2)])
def test_streams_reach_every_peer_by_all_its_parts(num_nodes: int, per_node: int) -> None:
    world_size = num_nodes * per_node
    firsts = set()
    for rank in range(world_size):
        cut = Cut(rank, world_size, per_node, near_parts=3, far_parts=2)
        streams = [stream_at(cut, index) for index in range(num_streams(cut))]
        expected = [
            (peer, part, parts_between(cut, peer))
            for peer in range(world_size)
            for part in range(parts_between(cut, peer))
        ]
        assert sorted(streams) == expected
        num_far = 2 * (world_size - per_node)
        assert all(stream.num_parts == 2 for stream in streams[:num_far])
        firsts.add((rank // per_node, streams[0].peer))
    # Ranks of a node begin with peers of their own.
    if num_nodes == 1 or world_size - per_node >= per_node:
        assert len(firsts) == world_size
