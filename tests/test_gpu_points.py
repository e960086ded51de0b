"""What machines with GPUs are given to run: all kernels, in worlds that share a GPU."""

from pathlib import Path

import pytest
from kernel_cases import refusal
from test_gpu import _OURS, _WORLD_SIZES, POINTS, spec_of

from bench.harness import refusal_of
from bench.traffic.bounds import HalfOp
from kernels.packing import MAX_SMS


def test_every_kernel_meets_every_case_in_every_form(tmp_path: Path) -> None:
    met = {(kernel, variant, impl) for _, kernel, variant, impl, _ in POINTS}
    assert met == set(_OURS)
    assert {form for *_, form in POINTS} == {"fresh", "cached"}
    sizes = set()
    for key in POINTS:
        spec = spec_of(key, tmp_path)
        assert spec.impl == key[3]
        assert (spec.device, spec.num_processes) == ("cuda", 1)
        assert spec.world_size * spec.num_sms <= MAX_SMS
        assert spec.workload.prefix is None
        sizes.add(spec.world_size)
    assert sizes >= _WORLD_SIZES


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_what_is_refused_there_is_expected(op: HalfOp, tmp_path: Path) -> None:
    for key in POINTS:
        spec = spec_of(key, tmp_path)
        expected = refusal(spec, op)
        told = refusal_of(spec, spec.protocol(), op)
        assert (told is None) == (expected is None), (key, told, expected)
        assert expected is None or expected in str(told), key
