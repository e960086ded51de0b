"""Kernels of files that are not in the repository: run, recorded, refused, and never stale."""

import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from kernel_cases import CASES

from bench.cli import main
from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec
from bench.records.frame import results_frame
from bench.records.record import Case, Run, Source
from bench.records.store import read_run
from comms.compiling import use_cache
from comms.errors import UsageError
from kernels.from_file import load_kernel_file

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "kernels" / "examples" / "segments.py").read_text()
#: Far more than any run here takes; only a run that hangs meets it.
LIMIT_S = 300
_SMALL = ("--tokens", "24", "--ranks", "4", "--num-sms", "2")
_LAST = "last = share_begin(p.num_tokens, worker + 1, num_workers)"
_FREE = """    for peer in range(worker, p.world_size, num_workers):
        isa.store_release(peer, p.free + 8 * p.rank, epoch)
"""
_ADD = "isa.add(source, p.arrived + 8 * p.rank, 1)"
_WAIT = "isa.wait_ge(p.free + 8 * source, epoch)"
#: Mistakes: what they replace, what with, the status of combine and what its reason contains; LINE
#: is where the kernel waits for `free`.
MISTAKES = {
    "deadlock": (_FREE, "", "timeout", r"deadlock\.py:LINE waits for free\[\d\] >= 1, sees 0"),
    "bounds": (
        _ADD,
        _ADD.replace("8 *", "8000 *"),
        "error",
        r"byte \d+ of region \w+ of \d+ bytes",
    ),
    "rank": (_ADD, _ADD.replace("source,", "99,"), "error", "addresses rank 99"),
    "divide": (_ADD, f"{_ADD}\n        isa.pause(1 // p.y_addr // p.y_addr // 0)", "error", "zero"),
    "poison": (_LAST, _LAST.replace("_workers)", "_workers + 1)"), "incorrect", "never written"),
}
#: Those of them that end a run on real clocks in ways of their own.
_OVER_MPI = ("deadlock", "bounds", "poison")


def write(name: str, *edits: tuple[str, str]) -> Path:
    """Write the example after edits, whose old text must occur once, to a file here."""
    text = EXAMPLE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = Path(name)
    path.write_text(text)
    return path


def line_of(path: Path, passage: str) -> str:
    """Return the line of a file that a passage begins in."""
    text = path.read_text()
    return str(1 + text[: text.index(passage)].count("\n"))


def run_here(*args: str) -> tuple[int, Run]:
    """Run epbench here on a small world and return its code and what it kept."""
    code = main(["run", *_SMALL, *args, "--json", "run.json"])
    return code, read_run(Path("run.json"))


def refusal(capsys: pytest.CaptureFixture[str], *kernels: str) -> str:
    """Return the one sentence by which kernels are refused."""
    assert main(["run", *_SMALL, "--kernel", ",".join(kernels)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line[:1] != "["]
    assert line.startswith("epbench: ")
    return line


def test_a_kernel_beside_built_in_ones(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("mine.py")
    kernels = "direct/push,./mine.py:mine,nccl_like/dedup"
    code, run = run_here("--kernel", kernels, "--form", "fresh,cached", "--masked-ratio", "0.2")
    assert code == 0
    assert {case.status for case in run.cases} == {"passed"}
    by_kernel = dict.fromkeys((case.kernel, case.variant, case.source) for case in run.cases)
    source = Source("mine.py", "mine", hashlib.sha256(path.read_bytes()).hexdigest())
    assert list(by_kernel) == [
        ("direct", "push", None),
        ("segments", "push", source),
        ("nccl_like", "dedup", None),
    ]
    own = [case for case in run.cases if case.source]
    assert all("source=mine.py:mine" in case.case_id for case in own)
    assert len({case.case_id for case in run.cases}) == len(run.cases) == 3 * 2 * 3
    assert own[0].time_us == run.cases[0].time_us
    assert str(in_tmp) not in Path("run.json").read_text()
    assert set(results_frame([run])["source_path"].dropna()) == {"mine.py"}
    out = capsys.readouterr().out
    assert f"# mine.py:mine is not in the repository, sha256 {source.sha256[:16]}" in out
    assert " segments/push mine.py " in out


def test_a_kernel_from_another_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine.py")
    (in_tmp / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for path in ("../mine.py", str(in_tmp / "mine.py")):
        code, run = run_here("--kernel", f"{path}:mine")
        assert code == 0
        assert run.cases[0].source is not None
        assert run.cases[0].source.path == path


def test_files_of_one_kernel_are_told_apart(in_tmp: Path) -> None:
    write("old.py")
    write("new.py", ("32), 16)", "32), 8)"))
    _, run = run_here("--kernel", "old.py:mine,new.py:mine")
    combine = {case.source and case.source.path: case.time_us for case in run.cases[1::3]}
    assert set(combine) == {"old.py", "new.py"}
    assert combine["old.py"] != combine["new.py"]


def test_each_file_of_a_kernel_takes_its_own_knobs(in_tmp: Path) -> None:
    write("old.py", ('Knob("warps"', 'Knob("blocks"'))
    write("new.py")
    grid = Grid(kernel=("old.py:mine", "new.py:mine"), knob=("blocks=4", "warps=8"))
    assert [spec.knobs for spec in expand([grid])] == [(("blocks", 4),), (("warps", 8),)]
    with pytest.raises(UsageError) as caught:
        expand([msgspec.structs.replace(grid, knob=("rows=4",))])
    told = "segments/push old.py has blocks; segments/push new.py has warps"
    assert told in str(caught.value)


def test_a_tuple_gives_its_variants(in_tmp: Path) -> None:
    path = write("mine.py")
    path.write_text(
        f"{EXAMPLE}\nimport dataclasses\nboth = (mine, dataclasses.replace(mine, variant='b'))\n"
    )
    for asked, variants in (("both", ["push", "b"]), ("both/b", ["b"])):
        specs = expand([Grid(kernel=(f"mine.py:{asked}",))])
        assert [(spec.kernel, spec.variant) for spec in specs] == [
            ("segments", variant) for variant in variants
        ]


_KNOBS = "knobs=(WARPS,),"
_NO_PROTOCOL = "from kernels import isa\nmine = 3\n"
#: What a file says, what is asked of it, and what the refusal contains.
REFUSED = {
    "no file": (None, "absent.py:mine", "there is no kernel file absent.py in "),
    "a folder": (None, "folder.py:mine", "there is no kernel file folder.py"),
    "not py": ("", "mine.txt:mine", "asked for as path/to/file.py:name, got 'mine.txt:mine'"),
    "no name": (EXAMPLE, "mine.py", "which kernel of mine.py is missing: mine.py:NAME; it has"),
    "syntax": ("x = 1\ndef f(:\n", "mine.py:mine", "mine.py:2: invalid syntax"),
    "bytes": ("x = '\0'\n", "mine.py:mine", "null bytes"),
    "absent": (EXAMPLE, "mine.py:yours", "mine.py has no 'yours'; it has mine"),
    "nothing": (_NO_PROTOCOL, "mine.py:other", "mine.py has no 'other'; it has no Protocol"),
    "no protocol": (_NO_PROTOCOL, "mine.py:mine", "mine.py:mine is of type int, neither"),
    "empty": ("mine = ()\n", "mine.py:mine", "mine.py:mine is of type tuple, neither"),
    "variant": (EXAMPLE, "mine.py:mine/pull", "mine.py:mine has no variant 'pull'; it has push"),
    "twice": (f"{EXAMPLE}\nmine = (mine, mine)\n", "mine.py:mine", "has a variant twice"),
    "import": ("\nimport absent_module\n", "mine.py:mine", "mine.py:2: ModuleNotFoundError: No "),
    "raises": ("x = {}\nx['k']\n", "mine.py:mine", "mine.py:2: KeyError: 'k'"),
    "exits": ("import sys\nsys.exit(3)\n", "mine.py:mine", "mine.py:2: SystemExit: 3"),
}
#: Passages of the example, what replaces them, and what the refusal contains; LINE is where.
MALFORMED = {
    "taken name": ('"segments"', '"direct"', "calls its kernel direct, which is the name of a"),
    "bad name": ('"segments"', '"a/b"', "must be made of letters, digits"),
    "no launches": ("COMBINE if", "None if", "launches('combine', 'fresh') must be a tuple of"),
    "nonsense": ("COMBINE if", "(3,) if", "launches('combine', 'fresh') must be KernelLaunches"),
    "raises": ("COMBINE if", "1 // 0 if", "mine.py:LINE: ZeroDivisionError: integer division"),
    "kernel": ('"combine", combine,', '"combine", len,', "must be a plain function of one"),
    "params": ("combine, P,", "combine, int,", "must be a typing.NamedTuple class, got"),
    "warps": ("P, WARPS.of", "P, 0", "num_warps of launch 'combine' must be at least 1, got 0"),
    "shared name": ('"combine", combine', '"dispatch", combine', "must be its own, got 'dispatch'"),
    "bytes": ("8 * shape.world_size)", "-8)", "regions['free'] must be a number of bytes, got -8"),
    "region": ('"places": 4', '"out": 4', "must be none of the harness's own, got 'out'"),
    "settings": ("direct.settings,", "lambda shape: {'a': 'nowhere'},", "settings['a'] must be"),
    "knobs": ("(WARPS,)", "(3,)", "knobs must be a tuple of kernels.knobs.Knob, got 3"),
    "granularity": (
        _KNOBS,
        f"{_KNOBS} granularity='row',",
        "granularity must be rank or selection, got 'row'",
    ),
    "splits": (
        _KNOBS,
        f"{_KNOBS} splits='paded',",
        "splits must be exact or padded or gathered, got 'paded'",
    ),
    "route": (
        _KNOBS,
        f"{_KNOBS} route='two_hop',",
        "route must be one_hop or rail or pxn, got 'two_hop'",
    ),
    "hops": (_KNOBS, f"{_KNOBS} hops=3,", "hops must be 1 or 2, got 3"),
    "pulls": (_KNOBS, f"{_KNOBS} pulls='yes',", "pulls must be True or False, got 'yes'"),
    "impl": (_KNOBS, f"{_KNOBS} impl='c',", "impl must be numba or cupy or library, got 'c'"),
    "devices": (
        _KNOBS,
        f"{_KNOBS} devices=('sim', 'gpu'),",
        "devices must be a tuple of sim or cpu or cuda, got ('sim', 'gpu')",
    ),
    "a device": (_KNOBS, f"{_KNOBS} devices='sim',", "a tuple of sim or cpu or cuda, got 'sim'"),
    "no device": (_KNOBS, f"{_KNOBS} devices=(),", "a tuple of sim or cpu or cuda, got ()"),
    "parameter": ("free arrived", "free arrived nope", "asks for parameter nope, which is neither"),
    "instruction": (
        "isa.copy_row(",
        "isa.copy_rows(",
        "mine.py:LINE: there is no instruction copy_rows; ",
    ),
    "undefined": (
        "last = share_begin(count",
        "last = nope(count",
        "mine.py:LINE: name 'nope' is not def",
    ),
    "typing": (
        "size * row, size)",
        "'a' + row, size)",
        "mine.py:LINE: kernel combine does not compile: No",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_refused(
    name: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, asked, told = REFUSED[name]
    Path("folder.py").mkdir()
    if text is not None:
        Path(asked.partition(":")[0]).write_text(text)
    assert told in refusal(capsys, "direct/pull", asked)
    assert not list(Path("results").rglob("*.json"))


@pytest.mark.parametrize("name", MALFORMED)
def test_a_protocol_that_is_refused(
    name: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, told = MALFORMED[name]
    path = write("mine.py", (old, new))
    sentence = refusal(capsys, "mine.py:mine")
    assert told.replace("LINE", line_of(path, new)) in sentence
    assert "mine.py:" in sentence or "kernel segments" in sentence
    assert len(sentence) < 500


def test_a_mistake_in_a_module_beside_it(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.py", ("from kernels.exchange", "import beside\nfrom kernels.exchange"))
    Path("beside.py").write_text("x = 1\nx = (\n")
    assert "beside.py:2: '(' was never closed" in refusal(capsys, "mine.py:mine")
    Path("beside.py").write_text("x = 1\nx = y\n")
    assert "beside.py:2: NameError" in refusal(capsys, "mine.py:mine")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_kernel_with_a_mistake(name: str, in_tmp: Path) -> None:
    old, new, status, told = MISTAKES[name]
    path = write(f"{name}.py", (old, new))
    code, run = run_here("--kernel", f"{name}.py:mine,direct/pull")
    assert code == {"timeout": 4, "error": 3, "incorrect": 7}[status]
    assert run.cases[1].status == status
    assert re.search(told.replace("LINE", line_of(path, _WAIT)), str(run.cases[1].reason))
    assert [case.status for case in run.cases[3:]] == ["passed"] * 3


@pytest.mark.parametrize(
    "name",
    [
        "no tokens",
        "7 tokens of 3 ranks",
        "2x3 ranks",
        "1 rank",
        "hot rank",
        "full bf16 rows",
        "top-22 of 512",
        "1 expert",
        "skew",
        "ranks without tokens",
    ],
)
def test_the_example_at_awkward_shapes(name: str, tmp_path: Path) -> None:
    asked = str(ROOT / "kernels" / "examples" / "segments.py") + ":mine"
    for form in CASES[name].forms:
        spec = CASES[name].spec(asked, "push", form, tmp_path)
        for case in run_spec(spec, lambda *_: None):
            refused = ("skipped", "stores reach one node")
            assert (case.status, case.reason) == (refused if spec.nodes > 1 else ("passed", None))


def _combine(run: Run) -> Case:
    return run.cases[1]


def test_an_edit_is_never_answered_by_code_from_before(in_tmp: Path) -> None:
    shares = ("share_begin(p.num_tokens, worker, num_workers), last)", "begin(p, worker), last)")
    imports = ("from kernels.knobs", "from beside import begin\nfrom kernels.knobs")
    write("mine.py", shares, imports)
    beside = Path("beside.py")
    right = (
        "from kernels.exchange import share_begin\n\n\ndef begin(p, worker):\n"
        "    return share_begin(p.num_tokens, worker, p.num_sms * p.num_warps)\n"
    )
    statuses, digests, folders = [], [], []
    for text in (right, right.replace("worker,", "worker + 1,"), right):
        beside.write_text(text)
        code, run = run_here("--kernel", "mine.py:mine")
        source = _combine(run).source
        assert source is not None
        statuses.append((code, _combine(run).status))
        digests.append(source.sha256)
        folders.append(use_cache((Path("mine.py"),)))
    assert statuses == [(0, "passed"), (7, "incorrect"), (0, "passed")]
    content = Path("mine.py").read_bytes() + beside.read_bytes()
    assert digests[2] == digests[0] == hashlib.sha256(content).hexdigest() != digests[1]
    assert folders[0] == folders[2] != folders[1]
    assert {folder.parent.parent for folder in folders} == {use_cache()}


def test_what_was_read_is_what_is_compiled(in_tmp: Path) -> None:
    path = write("mine.py")
    source, _ = load_kernel_file("mine.py:mine")
    path.write_text("")
    (launch,) = source.protocols[0].launches("combine", "fresh")
    assert "p.arrived" in inspect.getsource(launch.kernel)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="mine.py has no 'mine'"):
        load_kernel_file("mine.py:mine")


def test_over_mpi(in_tmp: Path) -> None:
    write("mine.py")
    Path("kernels_of_mine").mkdir()
    for name in _OVER_MPI:
        write(f"kernels_of_mine/{name}.py", MISTAKES[name][:2])
    files = ["mine.py", *(f"kernels_of_mine/{name}.py" for name in _OVER_MPI)]
    kernels = ",".join(["mpi/dedup", *(f"{file}:mine" for file in files)])
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--device", "cpu", "--ranks", "2", "--tokens", "24"]
        + ["--hidden", "192", "--iters", "0", "--timeout", "8", "--num-sms", "1"]
        + ["--kernel", kernels, "--json", "run.json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert str(in_tmp) not in Path("run.json").read_text()
    cases = json.loads(Path("run.json").read_text())["cases"]
    assert [case["status"] for case in cases[:6]] == ["passed"] * 6, cases[5]["reason"]
    for case, name in zip(cases[7::3], _OVER_MPI, strict=True):
        mistake = MISTAKES[name]
        path = Path(case["source"]["path"])
        assert path == Path("kernels_of_mine", f"{name}.py")
        assert case["status"] == mistake[2]
        assert re.search(mistake[3].replace("LINE", line_of(path, _WAIT)), case["reason"])


def test_a_kernel_that_does_not_compile_over_mpi(in_tmp: Path) -> None:
    old, new, told = MALFORMED["typing"]
    path = write("mine.py", (old, new))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--device", "cpu", "--ranks", "2", "--tokens", "24"]
        + ["--hidden", "192", "--kernel", "mine.py:mine"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("epbench: ")]
    assert told.replace("LINE", line_of(path, new)) in line
