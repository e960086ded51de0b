"""What machines with GPUs are given to run: all kernels, in worlds that share a GPU."""

from pathlib import Path

from test_gpu import _OURS, _WORLD_SIZES, POINTS, spec_of

from kernels.packing import MAX_SMS


def test_every_kernel_meets_every_case_in_every_form(tmp_path: Path) -> None:
    met = {(kernel, variant) for _, kernel, variant, _ in POINTS}
    assert met == set(_OURS)
    assert {form for *_, form in POINTS} == {"fresh", "cached"}
    sizes = set()
    for key in POINTS:
        spec = spec_of(key, tmp_path)
        assert (spec.device, spec.num_processes) == ("cuda", 1)
        assert spec.world_size * spec.num_sms <= MAX_SMS
        assert spec.workload.prefix is None
        sizes.add(spec.world_size)
    assert sizes >= _WORLD_SIZES
