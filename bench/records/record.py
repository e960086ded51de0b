"""The run file: typed records of a run and of its cases, one JSON file per run.

Every key carries its unit, absent values are `null`. Files of the same major version stay
readable: a reader ignores keys that it does not know.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from bench.records.files import decode, encode
from bench.timing import Timing

SCHEMA = "epbench-run"
SCHEMA_VERSION = "1.4.0"

Impl = Literal["numba", "cupy", "library"]
Form = Literal["fresh", "cached"]
Op = Literal["dispatch", "combine", "pair"]
Fidelity = Literal["measured", "paced", "predicted"]
Granularity = Literal["rank", "selection"]
Status = Literal["passed", "incorrect", "skipped", "error", "timeout"]

#: One value of an axis in the resolved configuration.
AxisValue = str | int | float | None


class Bytes(msgspec.Struct, frozen=True):
    """Bytes of one operation, totals over the world, counted from the routing.

    Attributes:
        logical: every (token, destination rank) copy without padding, the own rank included.
        logical_rdma: every (token, distinct node) copy without padding, the own node included.
        local: physical bytes to the own rank.
        nvlink: physical bytes between GPUs of a node, forwarding included.
        rdma: physical bytes between nodes, after deduplication where the kernel forwards.
    """

    logical: int
    logical_rdma: int
    local: int
    nvlink: int
    rdma: int


class Gbs(msgspec.Struct, frozen=True):
    """Rates at the busiest port in GB/s (1e9 bytes per second)."""

    logical: float
    nvlink: float
    rdma: float


class Caps(msgspec.Struct, frozen=True):
    """Caps of one GPU's ports in GB/s per direction, null where nothing caps."""

    nvlink_gbs: float | None
    rdma_gbs: float | None


class Check(msgspec.Struct, frozen=True):
    """Rows compared with the oracle; wrong rows, counts and late writes."""

    num_wrong: int
    num_checked: int


class Sim(msgspec.Struct, frozen=True):
    """What the simulator did for a case; `wall_s` is the only number that varies between runs."""

    events: int
    rows: int
    wall_s: float


class Clocks(msgspec.Struct, frozen=True):
    """What the GPUs' clocks did in the iterations of a case.

    Attributes:
        sm_mhz_min: lowest clock of an SM, on any rank and after any iteration.
        sm_mhz_max: highest one.
        reasons: what slowed a GPU.
        num_slowed: iterations in which one was.
        num_discarded: those of them that are not in `samples_us`: none where there are no others.
    """

    sm_mhz_min: int
    sm_mhz_max: int
    reasons: list[str]
    num_slowed: int
    num_discarded: int


class Source(msgspec.Struct, frozen=True):
    """The file that a kernel is from which is not in the repository.

    Attributes:
        path: as the user gave it.
        name: what of the file was asked for.
        sha256: of the file; where it imports modules beside it, of the file and of these, one
            after the other in order of their names.
    """

    path: str
    name: str
    sha256: str


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of one kernel at one point of the axes.

    Attributes:
        case_id: slug of the sorted axes, stable over runs.
        reason: one sentence, null where the case passed.
        time_us: median over iterations of the maximum over ranks, null where nothing was timed.
        samples_us: the iterations behind `time_us`.
        p5_us: percentile of those, `p95_us` likewise, null for a single one.
        p99_us: percentile, null for fewer than 100.
        skew_pct: how much later the last rank ends than the first, relative to `time_us`; where
            ranks have clocks of their own, how far their median times are apart.
        rank_us: each rank's own median time, of each process where ranks share one GPU; empty for a
            simulated world.
        rank_timer_us: likewise by its GPU's own timer, from when ranks had met to after the last
            kernel; empty where there is no GPU.
        memcpy_us: median time of `memcpy` of the bytes that a rank receives, by one thread of as
            many processes at once, or by a GPU of those that all ranks on it receive; null where it
            was not timed.
        memcpy_samples_us: its times, one before each iteration of `samples_us`.
        bound_own_us: least time for the bytes that this kernel must move.
        bound_best_us: least time under the best known routing.
        efficiency: `bound_own_us / time_us`, null where nothing caps or nothing was timed.
        phases_us: time of each launch by its name, maximum over ranks.
        sm_copy: which end of the range of the SM's copy rate was used.
        prefix: elements of each row that really moved, null for all.
        clocks: what GPUs' clocks did, null where there are none or nobody may look.
        source: the file that the kernel is from, null for a built-in one.
        knobs: values of all knobs of the kernel, defaults included.
        turned: names of those that were not at their default.
    """

    case_id: str
    kernel: str
    impl: Impl
    variant: str
    form: Form
    op: Op
    device: str
    fidelity: Fidelity
    fabric: str
    nodes: int
    world_size: int
    preset: str
    num_tokens: int
    hidden: int
    num_experts: int
    num_topk: int
    dispatch_dtype: str
    combine_dtype: str
    granularity: Granularity
    routing: str
    masked_ratio: float
    seed: int
    num_sms: int
    cross_rail: str
    sm_copy: Literal["low", "mid", "high"]
    skew_us: float
    prefix: int | None
    caps: Caps
    status: Status
    reason: str | None
    check: Check
    time_us: float | None = None
    samples_us: list[float] = []
    p5_us: float | None = None
    p95_us: float | None = None
    p99_us: float | None = None
    skew_pct: float | None = None
    rank_us: list[float] = []
    rank_timer_us: list[float] = []
    memcpy_us: float | None = None
    memcpy_samples_us: list[float] = []
    bound_own_us: float | None = None
    bound_best_us: float | None = None
    efficiency: float | None = None
    phases_us: dict[str, float] = {}
    bytes: Bytes | None = None
    gbs: Gbs | None = None
    sim: Sim | None = None
    clocks: Clocks | None = None
    source: Source | None = None
    knobs: dict[str, int] = {}
    turned: list[str] = []

    def __post_init__(self) -> None:
        if self.status == "passed":
            if self.time_us is None or not math.isfinite(self.time_us):
                raise ValueError(f"a passed case must have a time, got {self.time_us} us")
        elif not self.reason:
            raise ValueError(f"a case with status {self.status!r} must have a reason")


#: Axes of a case: fields that say what was run, see `identity`.
AXES = (
    *("kernel", "variant", "form", "op", "device", "fidelity", "fabric", "cross_rail", "sm_copy"),
    *("nodes", "world_size", "preset", "num_tokens", "hidden", "num_experts", "num_topk"),
    *("dispatch_dtype", "combine_dtype", "routing", "masked_ratio", "seed", "num_sms", "skew_us"),
    "prefix",
)


def identity(case: Case, axes: Sequence[str] = AXES) -> tuple[object, ...]:
    """Return what was run: axes, the file that the kernel is from, and the turned knobs."""
    turned = tuple((name, case.knobs[name]) for name in case.turned)
    return (*(getattr(case, name) for name in axes), case.source, turned)


class Tool(msgspec.Struct, frozen=True):
    """The program that wrote the run; git fields are null outside its clone."""

    name: str
    version: str
    git_sha: str | None
    git_branch: str | None
    git_dirty: bool | None


class Environment(msgspec.Struct, frozen=True):
    """Where the run happened: only what is listed here, never the whole environment.

    Attributes:
        mpi: library of the ranks, null where no case needed them.
        gpu_driver: version of NVIDIA's driver, null where there is none.
    """

    os: str
    kernel: str
    machine: str
    cpu_model: str | None
    num_cpus: int
    python: str
    packages: dict[str, str]
    env: dict[str, str]
    mpi: str | None = None
    gpu_driver: str | None = None


class Rank(msgspec.Struct, frozen=True):
    """One process of the run; a simulated world has none."""

    rank: int
    local_rank: int
    node_rank: int
    device: str


class TunedBy(msgspec.Struct, frozen=True):
    """Where knobs came from.

    Attributes:
        file: of `epbench tune`, as it was given.
        ops: operations whose times the knobs were chosen by.
        untuned: what ran with its default because the file has no entry for it.
    """

    file: str
    ops: list[Op]
    untuned: list[str]


class Config(msgspec.Struct, frozen=True):
    """The resolved request: each grid maps an axis to its value or values.

    Attributes:
        timing: how cases on real clocks were timed, null where none were asked for.
        tuned: where knobs came from that no grid has, null where none did.
    """

    suite: str | None
    grids: list[dict[str, AxisValue | list[AxisValue]]]
    timing: Timing | None = None
    tuned: TunedBy | None = None


class Run(msgspec.Struct, kw_only=True):
    """One run of epbench, which grows by its cases.

    Attributes:
        start_time: ISO 8601 with offset, `end_time` likewise and null until the run has ended.
        complete: False while the run goes on and for ever if it was interrupted.
    """

    schema: str = SCHEMA
    schema_version: str = SCHEMA_VERSION
    tool: Tool
    run_id: str
    machine_id: str
    start_time: str
    end_time: str | None = None
    argv: list[str]
    config: Config
    complete: bool = False
    environment: Environment
    ranks: list[Rank] = []
    cases: list[Case] = []


def run_schema() -> dict[str, object]:
    """Return the JSON Schema of a run file."""
    return msgspec.json.schema(Run)


def encode_run(run: Run) -> bytes:
    """Return the run as indented JSON with a final newline."""
    return encode(run)


def decode_run(data: bytes) -> Run:
    """Decode a run file.

    Raises:
        ValueError: it is not JSON, not a run, or of another major version.
    """
    return decode(data, Run, SCHEMA, SCHEMA_VERSION)
