"""Code for profilers: it links, and names lines; where the compilers are installed."""

import pytest

from kernels.low_latency import PROTOCOLS
from kernels.protocol import KernelLaunch


@pytest.mark.slow
def test_code_with_lines_links_and_names_those_of_instructions() -> None:
    pytest.importorskip("cuda.core")
    pytest.importorskip("numba_cuda")
    from kernels.isa.cuda_kernel import compile_kernel

    split = next(protocol for protocol in PROTOCOLS if protocol.variant == "split")
    launch = split.launches("dispatch", "fresh")[1]
    assert isinstance(launch, KernelLaunch)
    with_lines = compile_kernel(launch, 4, is_virtual=True, line_info=True)
    without = compile_kernel(launch, 4, is_virtual=True)
    assert b"waits.cuh" in with_lines.code
    assert b"waits.cuh" not in without.code


@pytest.mark.slow
@pytest.mark.parametrize("is_virtual", [False, True])
def test_the_harness_has_kernels_of_its_own(is_virtual: bool) -> None:
    pytest.importorskip("cuda.core")
    from kernels.isa.cuda_meet import compile_meeting

    cubins = compile_meeting("sm_90", is_virtual=is_virtual)
    assert {name: cubin.entry for name, cubin in cubins.items()} == {
        "_meet": "epbench_meet",
        "_stamp": "epbench_stamp",
    }
    assert all(cubin.entry.encode() in cubin.code for cubin in cubins.values())
