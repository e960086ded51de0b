"""In which order tests run, and fixtures for those that need no simulator."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from bench.cases import CaseSpec, blank_case
from bench.records.record import (
    Bytes,
    Case,
    Check,
    Config,
    Environment,
    Gbs,
    Op,
    Run,
    Sim,
    Tool,
)
from kernels.knobs import Knob

WARPS = Knob("warps", "warps of a block", (4, 8), 8)
OPS: tuple[Op, ...] = ("dispatch", "combine", "pair")
VARIANTS = {
    "direct": ["pull", "push"],
    "nccl_like": ["selection", "dedup"],
    "mpi": ["selection", "dedup"],
}

RunSpec = Callable[[CaseSpec, Callable[[str, float], None]], list[Case]]

#: Files that take longest, by name: they come first, so that no worker is left alone with one.
SLOWEST = (
    *("test_cpu_kernels", "test_kernels", "test_mpi_endings", "test_cuda_compile"),
    *("test_cxx_kernels", "test_mpi_hosts", "test_host_races", "test_predictions", "test_ring"),
    *("test_ring_two_hop", "test_own_kernels", "test_stored", "test_nccl_kernels"),
    *("test_host_copies", "test_fit_sm", "test_fit_nccl", "test_two_hop", "test_doctor"),
)

# Numba makes many objects that stay: looking through them seldom is a tenth of its time.
gc.set_threshold(200_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the slowest files to the front; within a file the order stays."""
    turns = {name: turn for turn, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: turns.get(item.path.stem, len(turns)))


def timed(case: Case, time_us: float = 100.0, **changes: object) -> Case:
    """Return a passed case with numbers that are consistent with its time."""
    fields = {
        "status": "passed",
        "reason": None,
        "time_us": time_us,
        "samples_us": [time_us, time_us],
        "skew_pct": 0.5,
        "bound_own_us": 80.0,
        "bound_best_us": 64.0,
        "efficiency": 80.0 / time_us,
        "phases_us": {"notify": 10.0, "send": time_us - 10.0},
        "bytes": Bytes(logical=9000, logical_rdma=0, local=1000, nvlink=8192, rdma=0),
        "gbs": Gbs(logical=150.0, nvlink=120.0, rdma=0.0),
        "check": Check(num_wrong=0, num_checked=77),
        "sim": Sim(events=10, rows=4, wall_s=0.25),
    }
    return msgspec.structs.replace(case, **{**fields, **changes})


def fake_run_spec(spec: CaseSpec, on_progress: Callable[[str, float], None]) -> list[Case]:
    """Time each operation of a spec by a formula, and refuse `direct/push` in `combine`."""
    rows = []
    for i, op in enumerate(OPS):
        on_progress(op, 1.0)
        impl = "library" if spec.kernel == "nccl_like" else "numba"
        row = blank_case(spec, op, "skipped", reason="no push here", impl=impl, granularity="rank")
        if (spec.variant, op) != ("push", "combine"):
            row = timed(row, 100.0 * (i + 1) + spec.num_sms)
        rows.append(row)
    return rows


def install_fakes(run_spec: RunSpec) -> None:
    """Stand in for the harness and the registry of kernels; also used in child processes."""
    harness = ModuleType("bench.harness")
    harness.__dict__["run_spec"] = run_spec
    registry = ModuleType("kernels.registry")
    registry.__dict__.update(
        kernel_names=lambda: list(VARIANTS),
        variants=lambda kernel: VARIANTS[kernel],
        describe=lambda kernel: f"About {kernel}.",
        find_protocol=lambda kernel, variant, source=None, impl="numba": SimpleNamespace(
            kernel=kernel,
            variant=variant,
            knobs=(WARPS,) if kernel == "direct" else (),
            devices=("sim", "cpu", "cuda"),
        ),
    )
    sys.modules["bench.harness"] = harness
    sys.modules["kernels.registry"] = registry


@pytest.fixture
def fakes() -> Iterator[Callable[[RunSpec], None]]:
    """Install the fakes until the test ends; call it to replace what runs a spec."""
    names = ("bench.harness", "kernels.registry")
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    install_fakes(fake_run_spec)
    yield install_fakes
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def specs(fakes: object) -> list[CaseSpec]:
    """Every variant of the fake kernels at 8 and 16 SMs of an H800 node."""
    from bench.expand import expand
    from bench.grid import Grid

    return expand([Grid(kernel=("direct", "nccl_like"), num_sms=(8, 16))])


@pytest.fixture
def run(specs: list[CaseSpec]) -> Run:
    """A complete run of `specs`."""
    cases = [case for spec in specs for case in fake_run_spec(spec, lambda *_: None)]
    return Run(
        tool=Tool(
            "epbench", "0.1.0", git_sha="0123456789abcdef", git_branch="main", git_dirty=False
        ),
        run_id="11112222-3333-4444-5555-666677778888",
        machine_id="sim-00000000",
        start_time="2026-01-02T03:04:05+00:00",
        end_time="2026-01-02T03:05:05+00:00",
        argv=["epbench", "run"],
        config=Config(suite=None, grids=[]),
        complete=True,
        environment=Environment("Linux", "6", "x86_64", None, 2, "3.11", {}, {}),
        cases=cases,
    )


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
