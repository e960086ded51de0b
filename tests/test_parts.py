"""Parts and wholes: what is compiled once, what is kept, and that the result is right."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba import njit, types
from numba.core.bytecode import FunctionIdentity

from comms.parts import WholeCompiler, part

ROOT = Path(__file__).parents[1]

whole = njit("int64(int64)", pipeline_class=WholeCompiler)


@part
def half(value: int) -> int:
    return value // 2


@part
def half_of_sum(first: int, second: int) -> int:
    return half(first + second)


def test_a_whole_runs_what_its_parts_call() -> None:
    @whole
    def run(value: int) -> int:
        return half_of_sum(value, 3) + half(value)

    assert run(8) == 9


def test_a_part_has_no_machine_code_of_its_own() -> None:
    half.compile((types.int64,))
    (compiled,) = half.overloads.values()
    assert compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name) == 0


def test_what_numba_compiles_in_its_own_way_takes_parts_in() -> None:
    @njit
    def run(value: int) -> int:
        return half_of_sum(value, 3)

    assert run(8) == 5


def test_constants_and_narrow_integers_share_one_compilation() -> None:
    @part
    def add(first: int, second: int) -> int:
        return first + second

    @whole
    def run(value: int) -> int:
        return add(value, 1) + add(2, types.int32(value)) + add(3, second=4)

    assert run(8) == 9 + 10 + 7
    assert add.signatures == [(types.int64, types.int64)]


def test_an_error_in_a_part_is_raised() -> None:
    @whole
    def run(value: int) -> int:
        return divided(8, value)

    assert run(4) == 2
    with pytest.raises(ZeroDivisionError):
        run(0)


@part
def divided(first: int, second: int) -> int:
    return first // second


def _counter(least: int) -> Any:  # noqa: ANN401
    @part
    def count(value: int) -> int:
        # Called twice: no compiler makes it a part of its callers.
        return least if value < 2 else count(value - 1) + count(value - 2)

    return count


def test_parts_of_one_name_are_their_wholes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(least: int) -> Callable[[int], int]:
        count = _counter(least)
        # Numba numbers names in each process anew: of code that two of them have kept, both parts
        # may have one name.
        with monkeypatch.context() as patch:
            patch.setattr(FunctionIdentity, "_unique_ids", itertools.count(10**6))
            count.compile((types.int64,))

        @whole
        def run(value: int) -> int:
            return count(value)

        return run

    assert [run(6) for run in [compiled(1), compiled(100)]] == [13, 1300]


_MODULE = """
from comms.parts import kept_part

def say(value):
    print("of", value)
    return value + 1

inside = kept_part(say)

def twice(value):
    return 2 * inside(value)

outside = kept_part(twice)

def first(value):
    return outside(value)

def second(value):
    return outside(value) + 1
"""
_RUN = """
import sys
import numba
numba.config.CACHE_DIR = "."
sys.path.insert(0, ".")
import functions
from comms.parts import WholeCompiler
decorate = numba.njit("int64(int64)", cache=True, pipeline_class=WholeCompiler)
print(decorate(getattr(functions, sys.argv[1]))(5))
print(*(sum(part.stats.cache_hits.values()) for part in (functions.inside, functions.outside)))
"""


def test_parts_are_found_on_the_disk_with_what_they_call(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(_MODULE)

    def run(whole: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, whole],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    assert run("first") == ["of 5", "12", "0 0"]
    assert run("second") == ["of 5", "13", "0 1"]
    # Wholes are found as well, and need no parts.
    assert run("second") == ["of 5", "13", "0 0"]
