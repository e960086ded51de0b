"""`epbench asm`: what it prints, what it refuses, and how two revisions are compared."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sass_for_tests import FOLDER, compiles

from bench.asm import examine as examining
from bench.asm import revision, table_of_all, targets, tools
from bench.asm.compare import changes_of, compare_page
from bench.asm.examine import Asked, examine, report_of
from bench.asm.page import asm_page
from bench.asm.report import KernelReport
from bench.asm.targets import Target, targets_of, targets_of_all
from bench.cli import main
from bench.pages import render
from comms.errors import RuntimeFailure, UsageError
from comms.fabric import load_fabric
from kernels.direct import PUSH
from kernels.protocol import KernelLaunch

ROOT = Path(__file__).resolve().parent.parent
SEGMENTS = "kernels/examples/segments.py:mine"
REQUIRED = {
    "kernel", "impl", "op", "arch", "registers", "spill_bytes", "shared_bytes", "fences",
    "instructions_per_16b", "bytes_in_flight",
}  # fmt: skip


@dataclass(frozen=True)
class FakeCubin:
    """A kernel of `sass/kernels.cu`, as compiling returns it."""

    entry: str
    arch: str = "sm_90"
    shared_bytes: int = 0
    code: bytes = b""
    compile_s: float = 1.5
    was_cached: bool = False


@pytest.fixture
def stored_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the binary utilities print the stored texts, whatever the cubin."""
    monkeypatch.setattr(tools, "check_packages", lambda: None)
    monkeypatch.setattr(tools, "instructions_text", lambda _: (FOLDER / "sm_90.json").read_text())
    monkeypatch.setattr(tools, "resources_text", lambda _: (FOLDER / "sm_90.txt").read_text())
    monkeypatch.setattr(examining, "function_addresses", lambda _: {})


def target(num_warps: int = 16, *, pulls: bool = False, num_sms: int | None = 8) -> Target:
    launch = PUSH.launches("combine", "fresh")[0]
    assert isinstance(launch, KernelLaunch)
    return Target("direct/push", "numba", "combine", launch, num_warps, num_sms, pulls)


def report(entry: str, num_warps: int = 16, shared_bytes: int = 0) -> KernelReport:
    cubin: Any = FakeCubin(entry, shared_bytes=shared_bytes)
    return report_of(target(num_warps), cubin, load_fabric("h800"))


def only_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, lines
    return lines[0]


# Reports


def test_bytes_under_way_are_those_of_all_lanes_of_a_block(stored_tools: None) -> None:
    eight, one = report("copy8"), report("copy1")
    assert eight.bytes_in_flight == 8 * 16 * 32 * 16
    assert one.bytes_in_flight == eight.bytes_in_flight // 8
    assert report("copy8", num_warps=4).bytes_in_flight == 8 * 16 * 32 * 4
    assert eight.bytes_needed == 14000
    assert (eight.mechanism, eight.instructions_per_16b) == ("ldst", 31 / 8)


def test_all_sms_share_the_link_where_a_launch_is_on_all(stored_tools: None) -> None:
    cubin: Any = FakeCubin("copy8")
    told = report_of(target(num_sms=None), cubin, load_fabric("h800"))
    assert told.bytes_needed == round(160 / 132 * 700)


def test_shared_memory_is_static_and_dynamic_without_what_the_system_takes(
    stored_tools: None,
) -> None:
    flags = report("flags", 2, shared_bytes=4096)
    assert (flags.static_shared_bytes, flags.dynamic_shared_bytes) == (512, 4096)
    assert flags.shared_bytes == 4608
    assert report("copy8").shared_bytes == 0


def test_stages_are_what_bulk_copies_have_under_way(stored_tools: None) -> None:
    told = report("bulk", 1, shared_bytes=16384)
    assert (told.mechanism, told.bytes_in_flight) == ("bulk", 16384)
    assert told.bytes_needed == 18000
    assert told.bulk["UBLKCP.S.G"] == 1


def test_a_block_that_does_not_fit_has_nothing_under_way(stored_tools: None) -> None:
    told = report("bulk", 30, shared_bytes=30 * 8192)
    assert (told.blocks_per_sm, told.bound_by, told.bytes_in_flight) == (0, "shared memory", 0)
    assert report("copy8", num_warps=32).blocks_per_sm == 1


def test_spills_registers_and_occupancy(stored_tools: None) -> None:
    told = report("copy8")
    assert (told.registers, told.spill_bytes) == (48, 0)
    assert (told.blocks_per_sm, told.warps_per_sm, told.bound_by) == (2, 32, "registers")
    text = (FOLDER / "sm_90.txt").read_text()
    assert re.search(r"spill:\n\s+REG:32 STACK:224", text)


def test_spilled_registers_are_told(stored_tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / "sm_90.txt").read_text().replace("STACK:0", "STACK:40")
    monkeypatch.setattr(tools, "resources_text", lambda _: text)
    assert report("copy8").spill_bytes == 40


def test_kernels_without_a_row_loop_say_so(stored_tools: None) -> None:
    told = report("narrow")
    assert told.share_128 == 0.0
    assert (told.mechanism, told.instructions_per_16b, told.bytes_in_flight) == (None, None, None)
    assert told.loops == []


def test_a_kernel_that_the_tools_do_not_tell_of(stored_tools: None) -> None:
    with pytest.raises(RuntimeFailure, match="the tools tell of bulk, .*, not missing"):
        report("missing")


def test_counts_do_not_depend_on_compile_times(
    stored_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examining, "compile_target", lambda *_: FakeCubin("copy8"))
    page = table_of_all(["sm_90"])
    assert "compile" not in render.plain(page)
    examined = examine(Asked([target()], ("sm_90",)))
    assert "1.50" in render.plain(asm_page(examined))


def test_the_page_says_what_is_not_known(stored_tools: None) -> None:
    loops = report("bulk", 1, shared_bytes=16384).loops
    unknown = [msgspec.structs.replace(loops[0], instructions_per_16b=None, bytes_needed=None)]
    kernel = msgspec.structs.replace(report("bulk", 1), loops=unknown)
    examined = msgspec.convert(
        {"limits": "somewhere", "kernels": [msgspec.to_builtins(kernel)], "skipped": []},
        examining.Examined,
    )
    text = render.plain(asm_page(examined))
    (row,) = (line for line in text.splitlines() if " bulk " in line and line[0] != "#")
    assert row.split()[3:7] == ["bulk", "copies", "N/A", "31"]
    assert "# somewhere" in text


# What is compiled


def test_kernels_are_named_as_epbench_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    grid = targets.WORLDS
    names = [
        [(each.kernel, each.op, each.launch.name, each.num_warps) for each in targets_of(
            msgspec.structs.replace(grid, kernel=(name,)), ("numba",))]
        for name in ("direct", "direct/push", SEGMENTS)
    ]  # fmt: skip
    assert len(names[0]) == 4
    assert names[1] == [
        ("direct/push", "dispatch", "dispatch", 16),
        ("direct/push", "combine", "combine", 16),
    ]
    assert [each[1:3] for each in names[2]] == [("dispatch", "dispatch"), ("combine", "combine")]
    assert names[2][0][0].endswith("segments.py")


def test_knobs_decide_how_many_warps_there_are() -> None:
    grid = msgspec.structs.replace(
        targets.WORLDS, kernel=("direct/push",), knob=("push_warps=4", "reduce_warps=2")
    )
    assert [each.num_warps for each in targets_of(grid)] == [16, 6, 16, 6]
    assert [each.num_warps for each in targets_of(grid, ("cupy",))] == [16, 6]
    too_many = msgspec.structs.replace(grid, knob=("push_warps=31",))
    with pytest.raises(UsageError, match="push_warps \\+ reduce_warps must be at most 32"):
        targets_of(too_many)


def test_all_kernels_for_gpus_are_those_that_are_no_models_of_others() -> None:
    names = {each.kernel for each in targets_of_all()}
    assert {"direct/pull", "direct/push", "two_hop/rail", "low_latency/fused"} <= names
    assert not any(name.startswith(("nccl_like", "mpi")) for name in names)


def test_combine_by_pull_reads_other_gpus() -> None:
    grid = msgspec.structs.replace(targets.WORLDS, kernel=("direct/pull",))
    assert [each.pulls for each in targets_of(grid)] == [False, True, False, True]


def test_kernels_of_cuda_cxx_are_targets_of_their_own() -> None:
    grid = msgspec.structs.replace(targets.WORLDS, kernel=("direct/push", "two_hop/rail"))
    told = {(each.kernel, each.impl, each.launch.cxx is None) for each in targets_of(grid)}
    assert told == {
        ("direct/push", "numba", True),
        ("direct/push", "cupy", False),
        ("two_hop/rail", "numba", True),
    }
    assert {each.kernel.partition("/")[0] for each in targets_of_all(impls=("cupy",))} == {
        "direct",
        "low_latency",
    }


# The command

Run = Callable[..., Any]


@pytest.fixture
def fake_compiler(stored_tools: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Compile every launch to `copy8`; return what was compiled."""
    compiled: list[tuple[str, str]] = []

    def compile_target(what: Target, arch: str) -> FakeCubin:
        compiled.append((what.launch.name, arch))
        return FakeCubin("copy8", arch)

    monkeypatch.setattr(examining, "compile_target", compile_target)
    return compiled


def test_json_has_an_object_for_each_launch(
    fake_compiler: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["asm", "direct/push", "--impl", "numba", "--json", "--arch", "sm_90,sm_80"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [(each["op"], each["arch"]) for each in told["kernels"]] == [
        ("dispatch", "sm_90"), ("combine", "sm_90"), ("dispatch", "sm_80"), ("combine", "sm_80"),
    ]  # fmt: skip
    assert all(set(each) > REQUIRED for each in told["kernels"])
    assert "cuda_occupancy.h" in told["limits"]
    assert err.splitlines()[0] == "[1/4] direct/push dispatch sm_90"
    assert fake_compiler == [
        ("dispatch", "sm_90"), ("combine", "sm_90"), ("dispatch", "sm_80"), ("combine", "sm_80"),
    ]  # fmt: skip


def test_tables_name_kernels_and_figures(
    fake_compiler: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["asm", "direct/push", "--impl", "numba", "--op", "combine"]) == 0
    plain = capsys.readouterr().out
    for title in ("resources", "loops that move rows", "accesses", "order"):
        assert f"# sm_90: {title}\n" in plain
    assert plain.count(" direct/push") == 4
    assert main(["asm", "direct/push", "--markdown"]) == 0
    assert "| direct/push | combine | numba | 16 | 48 | 0 |" in capsys.readouterr().out


def test_kernels_that_do_not_compile_are_told_beside_the_others(
    fake_compiler: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compile_target = examining.compile_target

    def refuse(what: Target, arch: str) -> object:
        if what.kernel == "two_hop/rail":
            raise UsageError("it is too large")
        return compile_target(what, arch)

    monkeypatch.setattr(examining, "compile_target", refuse)
    assert main(["asm", "--all"]) == 0
    out = capsys.readouterr().out
    assert "# not compiled: two_hop/rail dispatch sm_90: it is too large" in out
    assert main(["asm", "two_hop"]) == 2
    assert only_sentence(capsys) == "epbench: it is too large"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "name kernels, for example direct/push, or give --all"),
        (["direct", "--all"], "name kernels, for example direct/push, or give --all"),
        (["dirct"], "no kernel 'dirct'; did you mean direct?"),
        (["direct", "--arch", "sm_70"], "no limits of 'sm_70' are known"),
        (["direct", "--arch", "sm_80,sm_90", "--fabric", "h100"], "give one --arch"),
        (["direct", "--fabric", "h101"], "no fabric 'h101'"),
        (["two_hop", "--impl", "cupy"], "two_hop/rail is not written in CUDA C++"),
        (["direct", "--diff", "HEAD", "--sass"], "give one of them"),
        (["direct", "--diff", "no-such-thing"], "there is no revision 'no-such-thing' in "),
        (["direct", "--knob", "wraps=3"], "no knob 'wraps'"),
        (["missing.py:one"], "there is no kernel file missing.py"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(
    fake_compiler: list[tuple[str, str]],
    args: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["asm", *args]) == 2
    assert sentence in only_sentence(capsys)


def test_missing_packages_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    for form in ([], ["--json"], ["--sass"], ["--ptx"], ["--markdown"]):
        assert main(["asm", "direct/push", *form]) == 3
        sentence = only_sentence(capsys)
        assert sentence.startswith("epbench: epbench asm needs numba-cuda, cuda-core, nvidia-cuda-")
        assert sentence.endswith(": pip install -e '.[cuda-compile]'")


def test_a_tool_that_is_not_in_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Empty:
        files: tuple[object, ...] = ()

    monkeypatch.setattr(metadata, "distribution", lambda _: Empty())
    with pytest.raises(RuntimeFailure, match="there is no nvdisasm in nvidia-cuda-nvdisasm: pip"):
        tools.listing(b"")


# Two revisions


def kernel(**changes: object) -> dict[str, Any]:
    told = {
        "kernel": "direct/push", "op": "combine", "launch": "combine", "impl": "numba",
        "arch": "sm_90", "registers": 48, "spill_bytes": 0, "instructions_per_16b": 3.875,
        "fences": {"MEMBAR.SC.SYS": 2}, "widths": {"LDG": {"128": 8}}, "compile_s": 1.0,
        "loops": [{"mechanism": "ldst", "moves": "copies", "bytes_in_flight": 65536}],
    }  # fmt: skip
    return {**told, **changes}


def test_only_what_differs_is_listed() -> None:
    before = kernel(compile_s=9.0)
    assert changes_of(before, kernel()) == []
    after = kernel(
        registers=60,
        instructions_per_16b=None,
        fences={"MEMBAR.SC.SYS": 2, "CCTL.IVALL": 1},
        loops=[{"mechanism": "ldst", "moves": "copies", "bytes_in_flight": 8192}],
    )
    assert changes_of(before, after) == [
        ("registers", "48", "60", "+25 %"),
        ("instructions_per_16b", "3.88", "-", ""),
        ("loops.ldst.copies.bytes_in_flight", "65536", "8192", "-88 %"),
        ("fences.CCTL.IVALL", "-", "1", ""),
    ]


def test_two_revisions_stand_side_by_side() -> None:
    before = [kernel(), kernel(kernel="gone/once")]
    after = [kernel(registers=60), kernel(kernel="mine/one /tmp/mine.py")]
    text = render.plain(compare_page("v1", before, after))
    assert "48 -> 60" in text
    assert "# only at v1: gone/once combine combine numba sm_90" in text
    assert "# only here: mine/one combine combine numba sm_90" in text
    same = render.plain(compare_page("v1", [kernel()], [kernel()]))
    assert "->" not in same.split("\n", 3)[3]
    assert "# nothing\n" in same


def _git(folder: Path, *args: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "-C", str(folder), *who, *args], capture_output=True, check=True)


@pytest.fixture
def clone(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository of the project without its examples, and work in it."""
    for name in ("bench", "comms", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "examples")
        shutil.copytree(ROOT / name, in_tmp / name, ignore=ignored)
    _git(in_tmp, "init", "--quiet")
    _git(in_tmp, "add", ".")
    _git(in_tmp, "commit", "--quiet", "--message=all")
    monkeypatch.setattr(revision, "_ROOT", in_tmp)
    return in_tmp


def test_a_revision_without_the_command_is_told(clone: Path) -> None:
    _git(clone, "rm", "-r", "--quiet", "bench/asm")
    _git(clone, "commit", "--quiet", "--message=without")
    with pytest.raises(UsageError, match="revision HEAD has no `epbench asm`: give a later one"):
        revision.kernels_at("HEAD", ["direct/push"], [])


def test_a_revision_without_the_kernel_is_told(clone: Path) -> None:
    with pytest.raises(UsageError, match="at HEAD: no kernel 'dirct'; did you mean direct"):
        revision.kernels_at("HEAD", ["dirct"], ["--op", "combine"])
    with pytest.raises(UsageError, match="at HEAD: there is no kernel file kernels/examples/seg"):
        revision.kernels_at("HEAD", [SEGMENTS], [])


def test_a_kernel_file_of_elsewhere_is_the_same_for_all_revisions(clone: Path) -> None:
    outside = clone.parent / "mine.py"
    outside.write_text("raise ValueError('it was read')")
    with pytest.raises(UsageError, match="at HEAD: .*mine.py:1: ValueError: it was read"):
        revision.kernels_at("HEAD", ["../mine.py:one"], [])


def test_nothing_is_left_in_the_repository(clone: Path) -> None:
    before = sorted((clone / ".git").rglob("*"))
    with pytest.raises(UsageError):
        revision.kernels_at("HEAD", ["dirct"], [])
    assert sorted((clone / ".git").rglob("*")) == before


# What compilers make now


@compiles()
@pytest.mark.slow
def test_kernels_compile_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asm", "direct/push", "--impl", "numba", "--json"]) == 0
    dispatch, combine = json.loads(capsys.readouterr().out)["kernels"]
    for told in (dispatch, combine):
        assert 0 < told["registers"] <= 255
        assert told["blocks_per_sm"] >= 1
        assert sum(n for name, n in told["fences"].items() if name.startswith("MEMBAR")) > 0
        assert told["strong"]["LDG.STRONG.SYS"] > 0
        assert 1 < told["instructions_per_16b"] < 20
        assert told["bytes_in_flight"] >= told["bytes_needed"]
    assert {loop["moves"] for loop in combine["loops"]} == {"copies", "sums"}


@compiles()
@pytest.mark.slow
def test_a_kernel_of_ones_own_compiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["asm", SEGMENTS, "--op", "combine", "--arch", "sm_80"]) == 0
    assert "segments" in capsys.readouterr().out


@compiles()
@pytest.mark.slow
@pytest.mark.parametrize(("form", "expected"), [("--sass", ".L_x_"), ("--ptx", ".visible .entry")])
def test_texts_are_printed(form: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asm", "direct/push", "--impl", "numba", "--op", "combine", form]) == 0
    out = capsys.readouterr().out
    assert out.startswith("// direct/push combine numba sm_90\n")
    assert expected in out


@compiles()
@pytest.mark.slow
def test_a_revision_is_the_same_as_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    committed = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", "HEAD:bench/asm/__init__.py"], check=False
    )
    if committed.returncode:
        pytest.skip("needs a git clone of the project")
    args = ["asm", "direct/pull", "--impl", "numba", "--op", "combine", "--diff", "HEAD", "--json"]
    assert main(args) == 0
    told: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    (here,), (there,) = told["kernels"], told["revision"]["kernels"]
    assert (here["kernel"], there["kernel"]) == ("direct/pull", "direct/pull")
    assert set(there) >= REQUIRED
