"""Knobs: from the command line to the kernel, the record and the page."""

from pathlib import Path

import msgspec
import pytest
from kernel_cases import protocols

from bench.cli import main
from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.pages import render
from bench.pages.table import build_page
from bench.records.frame import results_frame
from bench.records.record import Case, Run
from bench.records.store import read_run
from comms.errors import UsageError
from kernels.knobs import MAX_BLOCK_WARPS, Knob, too_many_warps
from kernels.registry import find_protocol
from kernels.shape import Shape

_PUSH = Grid(kernel=("direct/push",), tokens=(20,), ranks_per_node=(4,), num_sms=(2,))
_NAMES = ("dispatch_warps", "push_warps", "reduce_warps", "chunk_rows")
#: Every knob with its least and its greatest choice, by variant; a ring stays a multiple of its
#: chunk, and blocks within their warps.
_CORNERS = {
    "direct/pull": ["dispatch_warps=4,pull_warps=8", "dispatch_warps=32,pull_warps=32"],
    "direct/push": [
        "dispatch_warps=4,push_warps=2,reduce_warps=2,chunk_rows=8",
        "dispatch_warps=32,push_warps=24,reduce_warps=8,chunk_rows=1",
        "push_warps=8,reduce_warps=24,chunk_rows=4",
        "push_warps=1,reduce_warps=1,chunk_rows=7",
    ],
    "two_hop/rail": [
        "channel_warps=2,forward_warps=8,reduce_warps=16,chunk_rows=1,ring_rows=8,"
        "combine_chunk_rows=1,combine_ring_rows=4",
        "channel_warps=4,forward_warps=24,reduce_warps=24,chunk_rows=8,ring_rows=64,"
        "combine_chunk_rows=4,combine_ring_rows=16",
    ],
    "ring/chunked": [
        "chunk_rows=1,ring_rows=2,combine_chunk_rows=1,combine_ring_rows=2",
        "chunk_rows=32,ring_rows=64,combine_chunk_rows=16,combine_ring_rows=512",
    ],
    "ring_two_hop/rail": [
        "dispatch_nvl_send=4,dispatch_nvl_recv=256,dispatch_rdma_send=4,dispatch_rdma_recv=64,"
        "combine_nvl_send=1,combine_nvl_recv=256,combine_rdma_send=8,combine_rdma_recv=64",
        "dispatch_nvl_send=44,dispatch_nvl_recv=512,dispatch_rdma_send=32,dispatch_rdma_recv=256,"
        "combine_nvl_send=7,combine_nvl_recv=512,combine_rdma_send=32,combine_rdma_recv=256",
    ],
    **dict.fromkeys(
        ("low_latency/fused", "low_latency/split"),
        [
            "send_warps=2,recv_warps=2,near_batch=8,far_batch=16",
            "send_warps=16,recv_warps=16,near_batch=1,far_batch=1",
        ],
    ),
}

#: Variants whose defaults are a published table's, some of them between the choices.
_BY_TABLE = ("ring_two_hop/rail",)
#: Worlds that a variant refuses, by its nodes.
_REFUSED = (
    *(("direct/pull", 2), ("ring/chunked", 2)),
    *(("two_hop/rail", 1), ("ring_two_hop/rail", 1)),
)


def _with(grid: Grid, *knob: str, **axes: object) -> Grid:
    return msgspec.structs.replace(grid, knob=knob, **axes)


def _rows(grid: Grid) -> list[Case]:
    (spec,) = expand([grid])
    return run_spec(spec, lambda *_: None)


def _points() -> list[object]:
    return [
        pytest.param(name, corner.split(","), nodes, id=f"{name} {nodes} {corner}")
        for name, corners in _CORNERS.items()
        for corner in corners
        for nodes in (1, 2)
        if (name, nodes) not in _REFUSED
    ]


@pytest.mark.parametrize(("name", "corner", "nodes"), _points())
def test_a_knob_never_changes_what_a_kernel_leaves(
    name: str, corner: list[str], nodes: int
) -> None:
    grid = _with(_PUSH, *corner, kernel=(name,), nodes=(nodes,), ranks_per_node=(4 // nodes,))
    for row in _rows(grid):
        assert (row.status, row.reason) == ("passed", None)
        assert row.check.num_wrong == 0
        wanted = {part.partition("=")[0]: int(part.partition("=")[2]) for part in corner}
        assert row.knobs == {**row.knobs, **wanted}


def test_every_kernel_with_knobs_has_its_corners_run() -> None:
    names = {
        f"{kernel}/{variant}"
        for kernel, variant in protocols("sim")
        if find_protocol(kernel, variant).knobs
    }
    assert names == set(_CORNERS)


@pytest.mark.parametrize("name", _CORNERS)
def test_defaults_and_choices_are_numbers_that_a_kernel_takes(name: str) -> None:
    for nodes in (1, 2):
        shape = Shape(nodes, 4, 64, 7168, 256, 8, 4)
        for knob in find_protocol(*name.split("/")).knobs:
            assert list(knob.choices) == sorted(set(knob.choices))
            assert knob.choices[0] >= 1
            assert knob.of(shape) in knob.choices or name in _BY_TABLE
        if (name, nodes) not in _REFUSED:
            protocol = find_protocol(*name.split("/"))
            assert protocol.refuses(shape, "dispatch", cross_rail="spine") is None


def test_a_turned_knob_changes_the_time() -> None:
    default, turned = _rows(_PUSH), _rows(_with(_PUSH, "push_warps=2"))
    assert default[1].time_us is not None
    assert turned[1].time_us is not None
    assert turned[1].time_us > 1.5 * default[1].time_us
    assert turned[0].time_us == default[0].time_us


def test_default_of_a_shape() -> None:
    knob = Knob("rows", "rows", (1, 2), lambda shape: shape.num_nodes)
    one, two = Shape(1, 4, 8, 128, 8, 2, 1), Shape(2, 2, 8, 128, 8, 2, 1)
    given = Shape(2, 2, 8, 128, 8, 2, 1, knobs=(("rows", 7),))
    assert [knob.of(shape) for shape in (one, two, given)] == [1, 2, 7]


def test_a_case_has_the_values_of_all_knobs_and_the_names_of_turned_ones() -> None:
    row = _rows(_with(_PUSH, "push_warps=4"))[0]
    assert row.knobs == dict(zip(_NAMES, (16, 4, 8, 1), strict=True))
    assert row.turned == ["push_warps"]
    assert _rows(_PUSH)[0].turned == []
    assert _rows(_with(_PUSH, nodes=(2,), ranks_per_node=(2,)))[0].knobs["chunk_rows"] == 2


def test_a_knob_is_an_axis_only_where_it_is_turned() -> None:
    (plain,) = expand([_PUSH])
    (same,) = expand([_with(_PUSH, "push_warps=8", "chunk_rows=1")])
    (turned,) = expand([_with(_PUSH, "push_warps=4", "chunk_rows=1")])
    assert "knob" not in plain.case_id("pair")
    assert same == plain
    assert ",knob_push_warps=4," in turned.case_id("pair")
    assert "chunk_rows" not in turned.case_id("pair")


def test_each_kernel_takes_the_knobs_that_it_has() -> None:
    specs = expand(
        [
            _with(
                _PUSH,
                "push_warps=4",
                "pull_warps=8",
                kernel=("direct", "mpi/dedup", "mpi/selection"),
            )
        ]
    )
    assert [spec.knobs for spec in specs] == [(("pull_warps", 8),), (("push_warps", 4),), (), ()]


def test_a_knob_of_another_grid_of_a_suite_is_known() -> None:
    other = _with(_PUSH, "push_warps=4", kernel=("nccl_like/dedup",))
    specs = expand([_with(_PUSH, "push_warps=4"), other])
    assert [spec.knobs for spec in specs] == [(("push_warps", 4),), ()]


@pytest.mark.parametrize(
    ("knob", "told"),
    [
        (("warp=4",), "no knob 'warp' of the kernels asked for; direct/push has dispatch_warps,"),
        (("pull_warps=4",), "no knob 'pull_warps'"),
        (("push_warps=0",), "knob push_warps must be at least 1, got 0; direct/push has"),
        (("push_warps=-3",), "knob push_warps must be at least 1, got -3"),
        (("push_warps",), "a knob must be given as NAME=VALUE, got 'push_warps'"),
        (("push_warps=x",), "a knob must be given as NAME=VALUE, got 'push_warps=x'"),
        (("=4",), "a knob must be given as NAME=VALUE, got '=4'"),
        (("push_warps=4", "push_warps=2"), "knob push_warps is given twice, 4 and 2"),
    ],
)
def test_refused_knobs(knob: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match="knob") as caught:
        expand([_with(_PUSH, *knob)])
    assert told in str(caught.value)


def test_a_kernel_without_knobs_says_so() -> None:
    with pytest.raises(UsageError, match="'push_warps' of the kernels asked for; they have none"):
        expand([_with(_PUSH, "push_warps=4", kernel=("nccl_like",))])


@pytest.mark.parametrize(
    ("name", "knob", "reason"),
    [
        ("direct/push", "push_warps=25", "push_warps + reduce_warps must be at most 32, the warps"),
        ("direct/push", "dispatch_warps=33", "dispatch_warps must be at most 32, the warps of a"),
        ("direct/pull", "pull_warps=33", "pull_warps must be at most 32, the warps of a block"),
        ("two_hop/rail", "channel_warps=12", "2 x channel_warps + forward_warps must be at most"),
        ("two_hop/rail", "reduce_warps=32", "channel_warps + reduce_warps must be at most 32"),
        ("two_hop/rail", "ring_rows=9", "ring_rows must be a multiple of chunk_rows, got 9 and 8"),
    ],
)
def test_combinations_that_cannot_run_are_skipped_with_a_reason(
    name: str, knob: str, reason: str
) -> None:
    nodes = 2 if name == "two_hop/rail" else 1
    for row in _rows(_with(_PUSH, knob, kernel=(name,), nodes=(nodes,))):
        assert row.status == "skipped"
        assert reason in str(row.reason)


def test_the_most_warps_of_a_block() -> None:
    assert too_many_warps("warps", MAX_BLOCK_WARPS) is None
    assert "got 33" in str(too_many_warps("warps", MAX_BLOCK_WARPS + 1))


def test_the_command_line_repeats_or_lists(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    small = ["run", "--kernel", "direct/push", "--tokens", "8", "--num-sms", "2"]
    out = ["--results", str(tmp_path), "--json", str(file)]
    knobs = ["--knob", "push_warps=4,chunk_rows=2", "--knob", "reduce_warps=4"]
    assert main([*small, *knobs, *out]) == 0
    stored = read_run(file)
    assert stored.config.grids[0]["knob"] == ["push_warps=4", "chunk_rows=2", "reduce_warps=4"]
    assert stored.cases[0].turned == ["chunk_rows", "push_warps", "reduce_warps"]
    assert main([*small, "--knob", "warps=4", *out]) == 2


def test_pages_show_turned_knobs(run: Run) -> None:
    turned = msgspec.structs.replace(run.cases[0], knobs={"warps": 4, "rows": 1}, turned=["warps"])
    page = build_page(msgspec.structs.replace(run, cases=[*run.cases, turned]))
    lines = render.plain(page).splitlines()
    rows = [line.split() for line in lines if line.startswith(" direct/pull")]
    assert [row[3] for row in rows[:3]] == ["-", "warps=4", "-"]
    assert any(line.startswith("# knobs:") for line in lines)
    assert "knobs" not in render.plain(build_page(run))


def test_skipped_rows_name_their_knobs(run: Run) -> None:
    skipped = next(case for case in run.cases if case.status == "skipped")
    turned = msgspec.structs.replace(skipped, knobs={"warps": 99}, turned=["warps"])
    page = build_page(msgspec.structs.replace(run, cases=[turned]))
    assert page.blocks[0].notes == ("skipped: direct/push (warps=99 fresh 8 SMs): no push here",)


def test_frames_have_knobs_as_text(run: Run) -> None:
    turned = msgspec.structs.replace(run.cases[0], knobs={"warps": 4, "rows": 1}, turned=["warps"])
    frame = results_frame([msgspec.structs.replace(run, cases=[turned, run.cases[1]])])
    assert frame["knobs"].tolist() == ["warps=4 rows=1", ""]
    assert frame["turned"].tolist() == ["warps=4", ""]


def test_the_list_has_default_and_choices_of_each_knob(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (push,) = [line for line in lines if line.startswith("  direct/push push_warps ")]
    assert push.endswith("Default: 8; tuning tries 2, 4, 8, 12, 16, 24.")
    (chunk,) = [line for line in lines if line.startswith("  direct/push chunk_rows ")]
    assert "Default: by shape;" in chunk
