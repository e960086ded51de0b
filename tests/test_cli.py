"""The command line: flags, pages, exit codes, and what is kept when a run ends early."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from conftest import fake_run_spec, timed

from bench.cases import CaseSpec
from bench.cli import cli, main
from bench.expand import expand
from bench.grid import Grid
from bench.progress import LineProgress
from bench.records.record import Case, Run, decode_run, encode_run
from bench.suites import SUITES
from comms.errors import RuntimeFailure, UsageError
from comms.fabric import load_fabric
from kernels.rows import PREFIX_HEAD, PREFIX_TAIL

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 60

Fakes = Callable[[Callable[[CaseSpec, Callable[[str, float], None]], list[Case]]], None]


def stored() -> list[Run]:
    return [decode_run(path.read_bytes()) for path in sorted(Path("results").glob("sim-*/*.json"))]


def only_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what stderr says, which must be one line and no traceback."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("epbench: ")
    return lines[0]


def child(args: Sequence[str], run_spec: str = "conftest.fake_run_spec") -> list[str]:
    """Return the command of a process that runs epbench with the fakes.

    Args:
        args: arguments of epbench.
        run_spec: expression for what runs a spec, or statements that define `run_spec`.
    """
    define = run_spec if "\n" in run_spec else f"run_spec = {run_spec}"
    paths = [str(ROOT), str(ROOT / "tests")]
    code = (
        f"import sys\nsys.path[:0] = {paths!r}\nimport conftest\n{define}\n"
        "conftest.install_fakes(run_spec)\nfrom bench.cli import main\n"
        f"sys.exit(main({list(args)!r}))"
    )
    return [sys.executable, "-c", code]


# Flags


def test_run_prints_a_page_and_keeps_the_run(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--json", "out.json", "--num-sms", "4,8"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# PREDICTED")
    (run,) = stored()
    assert run.complete
    assert len(run.cases) == 4 * 2 * 3
    assert {case.num_sms for case in run.cases} == {4, 8}
    assert Path("out.json").read_bytes() == encode_run(run)
    assert run.argv == ["epbench", "run", "--json", "out.json", "--num-sms", "4,8"]
    assert run.config.grids[0]["num_sms"] == [4, 8]
    (path,) = Path("results").glob("*/*.json")
    assert out.splitlines()[-2:] == [f"# Written to {path}", "# Written to out.json"]
    assert re.match(r"\[1/8\] direct/pull fresh 4 SMs, h800 EP8, 4096 tokens: dispatch 104\.0", err)


def test_underscores_and_aliases_mean_the_same(fakes: Fakes, in_tmp: Path) -> None:
    spellings = [
        ["--num-sms", "4", "--ranks-per-node", "4", "--tokens", "64", "--num-topk", "2"],
        ["--num_sms", "4", "--ranks_per_node", "4", "--num_tokens", "64", "--top_k", "2"],
        ["--num-sms=4", "--ranks-per-node=4", "--num-tokens=64", "--top-k=2"],
    ]
    for flags in spellings:
        assert main(["run", *flags]) == 0
    ids = [[case.case_id for case in run.cases] for run in stored()]
    assert len(ids) == 3
    assert ids[0] == ids[1] == ids[2]
    assert "world_size=4" in ids[0][0]
    assert "num_topk=2" in ids[0][0]


def test_every_flag_reaches_the_case(fakes: Fakes, in_tmp: Path) -> None:
    flags = (
        "--device sim --fabric h100 --nodes 2 --ranks-per-node 4 --preset gpt-oss-120b --tokens 64 "
        "--hidden 1024 --num-experts 64 --num-topk 3 --kernel direct/pull --num-sms 6 "
        "--form cached --dispatch-dtype bf16 --routing uniform --masked-ratio 0.25 --seed 7 "
        "--cross-rail forbidden --sm-copy low --skew-us 1.5 --prefix full"
    )
    assert main(["run", *flags.split()]) == 0
    case = stored()[0].cases[0]
    expected = {
        "device": "sim",
        "fabric": "h100",
        "nodes": 2,
        "world_size": 8,
        "preset": "gpt-oss-120b",
        "num_tokens": 64,
        "hidden": 1024,
        "num_experts": 64,
        "num_topk": 3,
        "kernel": "direct",
        "variant": "pull",
        "num_sms": 6,
        "form": "cached",
        "dispatch_dtype": "bf16",
        "routing": "uniform",
        "masked_ratio": 0.25,
        "seed": 7,
        "cross_rail": "forbidden",
        "sm_copy": "low",
        "skew_us": 1.5,
        "prefix": None,
    }
    assert {name: getattr(case, name) for name in expected} == expected


def test_kernel_without_variant_means_all_of_them(fakes: Fakes) -> None:
    specs = expand([Grid(kernel=("nccl_like", "direct/push"))])
    assert [(spec.kernel, spec.variant) for spec in specs] == [
        ("nccl_like", "selection"),
        ("nccl_like", "dedup"),
        ("direct", "push"),
    ]


def test_lists_multiply_and_repeats_run_once(fakes: Fakes) -> None:
    grid = Grid(
        kernel=("direct", "nccl_like"),
        nodes=(1, 2),
        tokens=(64, 128),
        num_sms=(4, 8, 8),
        form=("fresh", "cached"),
    )
    specs = expand([grid, grid])
    assert len(specs) == 4 * 2 * 2 * 2 * 2
    assert len({spec.case_id("pair") for spec in specs}) == len(specs)


def test_suite_keeps_its_axes_but_for_the_flags_given(fakes: Fakes, in_tmp: Path) -> None:
    flags = ["--device", "sim", "--kernel", "direct/pull", "--tokens", "64"]
    assert main(["run", "--suite", "main", *flags]) == 0
    (run,) = stored()
    assert {(case.world_size, case.num_sms) for case in run.cases} == {
        (8, 8),
        (8, 16),
        (8, 32),
        (16, 16),
        (16, 32),
    }
    assert {case.num_tokens for case in run.cases} == {64}
    assert run.config.suite == "main"


def test_default_prefix_is_that_of_the_rows() -> None:
    assert Grid().prefix == PREFIX_HEAD + PREFIX_TAIL


_FAMILY = {"direct", "ring", "ring_two_hop", "two_hop", "nccl_like"}


@pytest.mark.parametrize("name", SUITES)
def test_suites_expand(name: str) -> None:
    worlds = {
        "sim": {"family": {8, 16, 32}, "family-ep64": {64}}.get(name, {8, 16}),
        "cpu": {2, 4},
        "cuda": {"cards": {8}, "cards-two-nodes": {16}}.get(name, {2, 4, 8}),
    }
    of_suite = {
        "quick": {"direct", "nccl_like"},
        "family": _FAMILY,
        "family-ep64": _FAMILY - {"ring"},
        "one-card": {"direct", "ring", "low_latency", "two_hop", "ring_two_hop"},
        "cards": {"direct", "ring", "nccl"},
        "cards-two-nodes": {"direct", "two_hop", "ring_two_hop", "nccl"},
    }
    kernels = {
        "sim": of_suite.get(name, {"direct", "two_hop", "nccl_like"}),
        "cpu": {"direct", "mpi"},
        "cuda": of_suite.get(name, set()),
    }
    specs = expand(SUITES[name].grids)
    for device in {spec.device for spec in specs}:
        own = [spec for spec in specs if spec.device == device]
        assert {spec.world_size for spec in own} == worlds[device]
        assert {spec.kernel for spec in own} == kernels[device]


def test_family_has_every_kernel_in_every_world_at_the_same_budgets() -> None:
    specs = expand(SUITES["family"].grids)
    budgets: dict[tuple[int, str, str], list[int]] = {}
    for spec in specs:
        assert (spec.form, spec.fabric.sm_end, spec.workload.num_tokens) == ("fresh", "mid", 4096)
        budgets.setdefault((spec.nodes, spec.kernel, spec.variant), []).append(spec.num_sms)
    assert {(nodes, kernel) for nodes, kernel, _ in budgets} == {
        (nodes, kernel) for nodes in (1, 2, 4) for kernel in _FAMILY
    }
    assert all(
        found == ([8, 20, 32] if kernel == "nccl_like" else [8, 12, 16, 20, 24])
        for (_, kernel, _), found in budgets.items()
    )


def test_a_suite_has_nothing_for_a_device(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--suite", "quick", "--device", "cpu"]) == 2
    assert "nothing for device cpu" in capsys.readouterr().err


def test_same_command_gives_the_same_cases(fakes: Fakes, in_tmp: Path) -> None:
    for _ in range(2):
        assert main(["run", "--seed", "3"]) == 0
    first, second = stored()
    assert first.cases == second.cases
    assert first.run_id != second.run_id


# Usage errors


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--num-smz 4", "--num-smz"),
        ("--num-sms 0", "--num-sms"),
        ("--num-sms 4,x", "x"),
        ("--num-sms 133", "132 SMs of NVIDIA H800 SXM, got 133"),
        ("--ranks-per-node 0", "--ranks-per-node"),
        ("--nodes 0", "--nodes"),
        ("--nodes -1", "--nodes"),
        ("--tokens -1", "--tokens"),
        ("--num-topk 9 --num-experts 8", "got 9 of 8"),
        ("--hidden 0", "--hidden"),
        ("--masked-ratio 1.5", "1.5"),
        ("--skew-us -1", "--skew-us"),
        ("--seed -1", "--seed"),
        ("--prefix none", "none"),
        ("--prefix 0", "0"),
        ("--form new", "new"),
        ("--dispatch-dtype fp4", "fp4"),
        ("--cross-rail maybe", "maybe"),
        ("--sm-copy top", "top"),
        ("--device gpu", "no device 'gpu' in this version; choose one of sim"),
        ("--device abacus", "abacus"),
        ("--fabric h801", "h801"),
        ("--preset deepseek-v9", "deepseek-v9"),
        ("--routing unifrom", "unifrom"),
        ("--routing power-law:x", "power-law:x"),
        ("--routing file:none.npy", "none.npy"),
        ("--kernel drect", "did you mean direct?"),
        ("--kernel direct/pul", "did you mean pull?"),
        ("--kernel ,", "empty name"),
        ("--suite mein", "mein"),
        ("--json .", "cannot write --json ."),
        ("--json none/out.json", "cannot write --json none/out.json"),
        ("--results file", "cannot write results under file"),
        ("extra", "extra"),
    ],
)
def test_usage_error_is_one_sentence_and_runs_nothing(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    def must_not_run(*_: object) -> list[Case]:
        raise AssertionError("ran")

    fakes(must_not_run)
    Path("file").touch()
    assert main(["run", *flags.split()]) == 2
    assert told in only_sentence(capsys)
    assert stored() == []


def test_limit_of_sms_is_that_of_the_fabric(fakes: Fakes) -> None:
    num_sms = load_fabric("a800").num_sms
    expand([Grid(fabric=("a800",), num_sms=(num_sms,))])
    with pytest.raises(UsageError, match=f"{num_sms} SMs .* got {num_sms + 1}"):
        expand([Grid(fabric=("a800",), num_sms=(num_sms + 1,))])


@pytest.mark.parametrize("args", [["frobnicate"], ["--frobnicate"]])
def test_unknown_command_or_flag(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert "frobnicate" in only_sentence(capsys)


# Exit codes of cases


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["passed", "skipped"], 0),
        (["passed", "error"], 3),
        (["passed", "timeout", "error"], 4),
        (["skipped"], 5),
        (["timeout", "incorrect", "passed"], 7),
    ],
)
def test_exit_code_is_that_of_the_worst_case(
    fakes: Fakes,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    statuses: list[str],
    code: int,
) -> None:
    def run_spec(spec: CaseSpec, _: Callable[[str, float], None]) -> list[Case]:
        (row, *_rest) = fake_run_spec(spec, lambda *_: None)
        return [
            row
            if status == "passed"
            else msgspec.structs.replace(row, status=status, reason="moon")
            for status in statuses
        ]

    fakes(run_spec)
    assert main(["run", "--kernel", "direct/pull"]) == code
    out, err = capsys.readouterr()
    assert out.startswith("# PREDICTED")
    assert ("moon" in err.splitlines()[-1]) == (statuses != ["passed"])
    assert stored()[0].complete


def test_refused_spec_keeps_the_results_before(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_spec(spec: CaseSpec, _: Callable[[str, float], None]) -> list[Case]:
        if spec.variant == "push":
            raise UsageError("no file routes.npy")
        return fake_run_spec(spec, lambda *_: None)

    fakes(run_spec)
    assert main(["run"]) == 2
    (run,) = stored()
    assert (len(run.cases), run.complete) == (3, False)
    assert "no file routes.npy; results so far: results/sim-" in only_sentence(capsys)


@pytest.mark.parametrize("flags", [[], ["--traceback"]])
def test_internal_error_is_one_line_unless_asked_for_more(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    def run_spec(spec: CaseSpec, _: Callable[[str, float], None]) -> list[Case]:
        if spec.variant == "push":
            raise ZeroDivisionError("no ranks\nleft")
        return fake_run_spec(spec, lambda *_: None)

    fakes(run_spec)
    assert main(["run", *flags]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "epbench: internal error: ZeroDivisionError: no ranks left"
    assert ("Traceback" in err) == bool(flags)
    assert len(stored()[0].cases) == 3


# Runs that end early


def test_ctrl_c_keeps_the_results_so_far(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_spec(spec: CaseSpec, _: Callable[[str, float], None]) -> list[Case]:
        if spec.variant == "push":
            raise KeyboardInterrupt
        return fake_run_spec(spec, lambda *_: None)

    fakes(run_spec)
    assert main(["run", "--json", "out.json"]) == 130
    (run,) = stored()
    assert (len(run.cases), run.complete) == (3, False)
    assert run.end_time is not None
    assert Path("out.json").read_bytes() == encode_run(run)
    assert "interrupted after 1 of 4 specs; results so far: results/sim-" in only_sentence(capsys)


def test_sigint_ends_the_process_with_130(in_tmp: Path) -> None:
    run_spec = (
        "def run_spec(spec, on_progress):\n"
        "    if spec.variant == 'push':\n"
        "        print('waiting', file=sys.stderr, flush=True)\n"
        "        __import__('time').sleep(600)\n"
        "    return conftest.fake_run_spec(spec, on_progress)\n"
    )
    process = subprocess.Popen(
        child(["run"], run_spec), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line == "waiting\n":
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, lines
    assert re.fullmatch(r"epbench: interrupted after 1 of 4 specs; results so far: \S+\n", err)
    assert out == ""
    (run,) = stored()
    assert (len(run.cases), run.complete) == (3, False)


def test_disk_full_in_the_middle(
    fakes: Fakes,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace, num_writes = os.replace, 0

    def fills_up(source: Path, target: Path) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fills_up)
    assert main(["run"]) == 3
    assert "disk full" in (sentence := only_sentence(capsys))
    assert "6 of 9 cases are kept" in sentence
    (run,) = stored()
    assert len(run.cases) == 6
    assert list(Path("results").rglob("*.tmp")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flags", [["--json", "/dev/full"], []])
def test_full_device(in_tmp: Path, flags: list[str]) -> None:
    with open(os.devnull if flags else "/dev/full", "w") as stdout:
        done = subprocess.run(
            child(["run", *flags]),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 3
    assert re.fullmatch(
        r"epbench: .*no space left on device.*", done.stderr.splitlines()[-1].lower()
    )
    assert len(stored()[0].cases) == 12


def test_closed_pipe_is_quiet(in_tmp: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        child(["run"]),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("[")] == []
    assert stored()[0].complete


# The other commands


def test_show_prints_a_stored_run(run: Run, in_tmp: Path) -> None:
    Path("a.json").write_bytes(encode_run(run))
    runner = CliRunner()
    plain = runner.invoke(cli, ["show", "a.json"])
    assert plain.stdout.startswith("# PREDICTED")
    assert "Written" not in plain.stdout
    marked = runner.invoke(cli, ["show", "a.json", "--markdown"])
    assert marked.stdout.startswith("**PREDICTED")
    assert plain.exit_code == marked.exit_code == 0


def test_show_refuses_what_is_not_a_run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.json").write_text(json.dumps({"schema": "other"}))
    assert main(["show", "a.json"]) == 2
    assert "a.json is not a run file" in only_sentence(capsys)
    assert main(["show", "none.json"]) == 2
    assert "cannot read none.json" in only_sentence(capsys)


def test_list_names_everything_a_flag_accepts(fakes: Fakes) -> None:
    out = CliRunner().invoke(cli, ["list"]).stdout
    for name in ("direct", "selection, dedup", "h800", "deepseek-v3", "uniform", "sim", *SUITES):
        assert name in out


def test_help_documents_every_flag() -> None:
    out = CliRunner().invoke(cli, ["run", "--help"]).stdout
    flags = (
        "device fabric nodes ranks-per-node preset tokens num-tokens hidden num-experts num-topk "
        "kernel num-sms form dispatch-dtype routing masked-ratio seed cross-rail sm-copy skew-us "
        "prefix knob suite tuned json results traceback"
    )
    assert [flag for flag in flags.split() if f"--{flag} " not in out.replace(",", " ")] == []


def test_help_of_tune_documents_its_flags() -> None:
    out = CliRunner().invoke(cli, ["tune", "--help"]).stdout.replace(",", " ")
    flags = "kernel num-sms suite op seeds check-seeds budget exhaustive out iters"
    assert [flag for flag in flags.split() if f"--{flag} " not in out] == []
    for flag in ("--seed ", "--knob ", "--tuned ", "--json "):
        assert flag not in out


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from bench.cli import main; main(['run', '--help']); "
        "slow = {'numpy', 'numba', 'pandas', 'rich', 'mpi4py', 'ml_dtypes'}; "
        "sys.exit(','.join(slow & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: epbench")


def test_progress_line_tells_what_went_wrong(
    specs: list[CaseSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = LineProgress(2)
    row = fake_run_spec(specs[0], lambda *_: None)[0]
    progress.end(specs[0], [msgspec.structs.replace(row, status="timeout", reason="rank 3 waits")])
    progress.end(specs[0], [timed(row, 12.34)])
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("[1/2] direct/pull")
    assert first.endswith("timeout (rank 3 waits)")
    assert second.endswith("dispatch 12.3 us")


def test_runtime_failure_of_a_spec_has_exit_code_3(
    fakes: Fakes, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_spec(spec: CaseSpec, _: Callable[[str, float], None]) -> list[Case]:
        raise RuntimeFailure(f"no memory for {spec.world_size} ranks")

    fakes(run_spec)
    assert main(["run"]) == 3
    assert "no memory for 8 ranks" in only_sentence(capsys)
