"""The cases that every kernel gets right, or refuses with a documented reason, on any device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from bench.cases import CaseSpec
from bench.expand import expand
from bench.grid import Grid
from bench.records.record import Form, Impl, Op
from bench.workloads.presets import PRESETS
from kernels.cxx import MAX_WARPS
from kernels.protocol import KernelLaunch
from kernels.registry import find_protocol, impls, kernel_names, variants
from kernels.rows import row_bytes


def protocols(device: str) -> tuple[tuple[str, str], ...]:
    """Return every kernel of a device with each of its variants there."""
    return tuple(
        (kernel, variant)
        for kernel in kernel_names()
        for variant in variants(kernel)
        if device in find_protocol(kernel, variant).devices
    )


def own_kernels() -> tuple[tuple[str, str, Impl], ...]:
    """Return every kernel that device cuda compiles, in each of the ways that it is written."""
    return tuple(
        (kernel, variant, impl)
        for kernel, variant in protocols("cuda")
        if find_protocol(kernel, variant).library is None
        for impl in impls(kernel, variant)
    )


NO_PATH = "cross_rail = forbidden"
ONE_NODE = "one node only"
NO_RAIL = "one node needs one hop"
#: Kernels that refuse a single node.
ACROSS_NODES = ("two_hop", "ring_two_hop")
#: Kernels whose channels are pairs of SMs.
IN_PAIRS = ("ring", "ring_two_hop")


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One point of the axes, whatever the kernel.

    Attributes:
        grid: the axes, with one value each; a kernel takes the knobs that it has.
        forms: fresh, cached or both.
        write_routing: writes a routing file into a folder and returns its spec string.
        num_rows: rows that dispatch delivers in the world by rank granularity, where a test counts
            them by hand.
    """

    grid: Grid
    forms: tuple[Form, ...] = ("fresh", "cached")
    write_routing: Callable[[Path], str] | None = None
    num_rows: int | None = None

    def where_it_runs(self, kernel: str) -> "KernelCase":
        """Return this case on two nodes, or on an even number of SMs, if the kernel needs it."""
        moved = self.grid
        if kernel in IN_PAIRS:
            (num_sms,) = moved.num_sms
            moved = msgspec.structs.replace(moved, num_sms=(max(num_sms - num_sms % 2, 2),))
        if kernel in ACROSS_NODES and moved.nodes == (1,):
            (ranks,) = moved.ranks_per_node
            moved = msgspec.structs.replace(moved, nodes=(2,), ranks_per_node=(ranks // 2,))
        return replace(self, grid=moved)

    def spec(
        self, kernel: str, variant: str, form: Form, folder: Path, impl: Impl = "numba"
    ) -> CaseSpec:
        """Return the spec of a kernel at this point; routing files go to `folder`."""
        grid = msgspec.structs.replace(
            self.grid, kernel=(f"{kernel}/{variant}",), form=(form,), impl=(impl,)
        )
        if self.write_routing:
            grid = msgspec.structs.replace(grid, routing=(self.write_routing(folder),))
        (spec,) = expand([msgspec.structs.replace(grid, knob=())])
        names = {knob.name for knob in spec.protocol().knobs}
        if knobs := tuple(item for item in grid.knob if item.partition("=")[0] in names):
            (spec,) = expand([msgspec.structs.replace(grid, knob=knobs)])
        return spec


def refusal(spec: CaseSpec, op: Op) -> str | None:
    """Return what the reason of a documented refusal contains, or None where none is due."""
    if spec.kernel in ACROSS_NODES and spec.nodes == 1:
        return NO_RAIL
    if spec.kernel == "ring" and spec.nodes > 1:
        return ONE_NODE
    if spec.impl == "cupy" and _most_warps(spec) > MAX_WARPS:
        return f"in CUDA C++ must be at most {MAX_WARPS}"
    if spec.kernel in IN_PAIRS and spec.num_sms % 2:
        return f"must be even, got {spec.num_sms}"
    if spec.kernel not in ("direct", "low_latency") or spec.nodes == 1:
        return None
    if spec.variant == "pull" and op != "dispatch":
        return ONE_NODE
    return NO_PATH if spec.fabric.cross_rail == "forbidden" else None


def _most_warps(spec: CaseSpec) -> int:
    protocol, shape = spec.protocol(), spec.shape()
    return max(
        launch.warps(shape)
        for op in ("dispatch", "combine")
        for launch in protocol.launches(op, "fresh")
        if isinstance(launch, KernelLaunch)
    )


def write_matrix(folder: Path) -> str:
    """Write bytes between 4 ranks: rank 1 has no tokens, rank 2 receives none, 38 rows in all."""
    rows = np.array([[3, 1, 0, 7], [0, 0, 0, 0], [2, 5, 0, 4], [6, 1, 0, 9]])
    text = "\n".join(" ".join(map(str, row)) for row in (rows * row_bytes(7168, "fp8")).tolist())
    path = folder / "bytes.txt"
    path.write_text(text)
    return f"matrix:{path}"


def write_few_tokens(folder: Path) -> str:
    """Write 5 tokens for a world of 8: ranks 5 to 7 have none, one token names no expert at all."""
    topk_idx = np.array(
        [[0, 9, 200], [255, -1, 3], [-1, -1, -1], [32, 33, 34], [-1, 128, -1]], np.int64
    )
    weights = np.array(
        [[0.5, -0.25, 3.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3], [0, 1e-30, 0]],
        np.float32,
    )
    path = folder / "few.npz"
    np.savez(path, topk_idx=topk_idx, topk_weights=weights)
    return f"file:{path}"


def _small(**axes: object) -> Grid:
    """Return a grid of few tokens; `axes` replace what it says."""
    return msgspec.structs.replace(Grid(tokens=(16,), num_sms=(2,)), **axes)


#: One warp and one row of everything, and as many as a block and every kernel's rings take.
_LEAST = (
    *(
        f"{name}=1"
        for name in (
            *("dispatch_warps", "pull_warps", "push_warps", "reduce_warps", "channel_warps"),
            *("forward_warps", "chunk_rows", "ring_rows", "combine_chunk_rows"),
            *("combine_ring_rows", "dispatch_nvl_send", "dispatch_rdma_send"),
            *("combine_nvl_send", "combine_rdma_send"),
        )
    ),
    # `ring_two_hop` takes no ring that holds less than two chunks, on each of two nodes.
    *("dispatch_nvl_recv=2", "dispatch_rdma_recv=2", "combine_nvl_recv=4", "combine_rdma_recv=2"),
)
_MOST = (
    *("dispatch_warps=32", "pull_warps=32", "push_warps=8", "reduce_warps=24", "channel_warps=4"),
    *("forward_warps=24", "chunk_rows=8", "ring_rows=64", "combine_chunk_rows=4"),
    "combine_ring_rows=16",
)


#: Sizes are spread over the cases pairwise, not multiplied.
CASES = {
    "no tokens": KernelCase(_small(tokens=(0,), num_sms=(1,)), num_rows=0),
    "1 token": KernelCase(_small(tokens=(1,), num_sms=(3,))),
    "7 tokens of 3 ranks": KernelCase(_small(tokens=(7,), ranks_per_node=(3,), num_sms=(1,))),
    "7 tokens of 2x3 ranks": KernelCase(_small(tokens=(7,), nodes=(2,), ranks_per_node=(3,))),
    "4001 tokens": KernelCase(
        _small(tokens=(4001,), ranks_per_node=(2,), preset=("mixtral-8x7b",), num_sms=(20,)),
        forms=("fresh",),
    ),
    "1 rank": KernelCase(_small(tokens=(33,), ranks_per_node=(1,), num_sms=(3,)), num_rows=33),
    "2 ranks": KernelCase(_small(tokens=(33,), ranks_per_node=(2,), num_sms=(20,))),
    "2x3 ranks": KernelCase(_small(tokens=(33,), nodes=(2,), ranks_per_node=(3,), num_sms=(3,))),
    "2x3 ranks on rails": KernelCase(
        _small(nodes=(2,), ranks_per_node=(3,), cross_rail="forbidden", num_sms=(3,))
    ),
    "3x1 ranks": KernelCase(_small(tokens=(20,), nodes=(3,), ranks_per_node=(1,), num_sms=(1,))),
    "2x4 ranks on rails, skewed": KernelCase(
        _small(nodes=(2,), ranks_per_node=(4,), cross_rail="forbidden", skew_us=40.0),
        forms=("cached",),
    ),
    "hot rank": KernelCase(_small(tokens=(40,), routing=("hot:4",))),
    "hot rank of 2x2": KernelCase(
        _small(tokens=(40,), nodes=(2,), ranks_per_node=(2,), routing=("hot:2",), num_sms=(1,)),
        forms=("fresh",),
    ),
    "power law": KernelCase(_small(tokens=(40,), routing=("power-law:1.2",), num_sms=(3,))),
    "groups": KernelCase(_small(routing=("groups",)), forms=("fresh",)),
    "fp8 tail group": KernelCase(_small(preset=("gpt-oss-120b",), tokens=(7,), prefix=None)),
    "full rows of 100": KernelCase(_small(hidden=100, prefix=None)),
    "full bf16 rows": KernelCase(
        _small(hidden=264, prefix=None, dispatch_dtype=("bf16",)), forms=("fresh",)
    ),
    "bf16 dispatch of 2x2": KernelCase(
        _small(nodes=(2,), ranks_per_node=(2,), dispatch_dtype=("bf16",), num_sms=(3,))
    ),
    "60 experts on 8 ranks": KernelCase(_small(preset=("qwen1.5-moe-a2.7b",))),
    "top-22 of 512": KernelCase(_small(preset=("nemotron-3-super",), tokens=(9,))),
    "896 experts": KernelCase(_small(preset=("kimi-k3",), num_sms=(1,))),
    "5 experts on 8 ranks": KernelCase(_small(num_experts=5, num_topk=3)),
    "1 expert": KernelCase(_small(num_experts=1, num_topk=1, ranks_per_node=(3,)), num_rows=48),
    "masked": KernelCase(_small(tokens=(40,), masked_ratio=0.3, num_sms=(3,))),
    "masked on 2x3": KernelCase(
        _small(tokens=(20,), nodes=(2,), ranks_per_node=(3,), masked_ratio=0.8)
    ),
    "all masked": KernelCase(_small(masked_ratio=1.0), num_rows=0),
    "more SMs than tokens": KernelCase(_small(tokens=(3,), ranks_per_node=(4,), num_sms=(20,))),
    "skew": KernelCase(_small(skew_us=100.0)),
    "skew on 2x2": KernelCase(_small(nodes=(2,), ranks_per_node=(2,), skew_us=100.0)),
    "ranks without tokens": KernelCase(_small(), write_routing=write_few_tokens, num_rows=6),
    "matrix": KernelCase(_small(ranks_per_node=(4,)), write_routing=write_matrix, num_rows=38),
    "matrix on 2x2": KernelCase(
        _small(nodes=(2,), ranks_per_node=(2,)),
        forms=("fresh",),
        write_routing=write_matrix,
        num_rows=38,
    ),
    "knobs turned down": KernelCase(_small(tokens=(20,), nodes=(2,), knob=_LEAST)),
    "knobs turned up": KernelCase(_small(tokens=(20,), num_sms=(3,), knob=_MOST)),
    "no tokens of 2x2": KernelCase(
        _small(tokens=(0,), nodes=(2,), ranks_per_node=(2,)), forms=("cached",), num_rows=0
    ),
    "1 token of 3x1": KernelCase(
        _small(tokens=(1,), nodes=(3,), ranks_per_node=(1,), num_sms=(4,)), forms=("fresh",)
    ),
    "hot rank of 2x3": KernelCase(
        _small(tokens=(40,), nodes=(2,), ranks_per_node=(3,), routing=("hot:3",)),
        forms=("cached",),
    ),
    "top-22 on 3x2": KernelCase(
        _small(preset=("nemotron-3-super",), tokens=(9,), nodes=(3,), ranks_per_node=(2,)),
        forms=("cached",),
    ),
    "896 experts on 2x4": KernelCase(
        _small(preset=("kimi-k3",), nodes=(2,), ranks_per_node=(4,)), forms=("fresh",)
    ),
    "fp8 tail group on 2x2": KernelCase(
        _small(preset=("gpt-oss-120b",), tokens=(7,), prefix=None, nodes=(2,), ranks_per_node=(2,)),
        forms=("fresh",),
    ),
    "rings wrap on 2x2": KernelCase(
        _small(tokens=(600,), nodes=(2,), ranks_per_node=(2,)), forms=("fresh",)
    ),
    "a800": KernelCase(_small(fabric=("a800",)), forms=("fresh",)),
    "b200": KernelCase(_small(fabric=("b200",), nodes=(2,), ranks_per_node=(2,)), forms=("fresh",)),
    "uncapped": KernelCase(_small(fabric=("uncapped",), nodes=(2,), ranks_per_node=(2,))),
}


def preset_cases() -> dict[str, KernelCase]:
    """Return a case for every preset of its own sizes, aliases left out."""
    cases = {}
    seen = set()
    for name, model in PRESETS.items():
        sizes = (model.hidden, model.num_experts, model.num_topk, model.num_groups)
        if sizes not in seen:
            form: Form = "cached" if len(seen) % 2 else "fresh"
            cases[name] = KernelCase(Grid(preset=(name,), tokens=(32,)), forms=(form,))
        seen.add(sizes)
    return cases
