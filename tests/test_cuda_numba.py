"""What numba-cuda is made to do: loops as written, and parameters read where they are used."""

import re

import pytest
from sass_for_tests import compiles

from bench.asm.targets import targets_of_all
from kernels.isa import cuda_kernel
from kernels.isa.cuda_numba import rolled
from kernels.protocol import KernelLaunch

_MODULE = """\
define void @f(i1 %c) {
  br label %loop
loop:
  br i1 %c, label %loop, label %end
end:
  ret void
}
!llvm.module.flags = !{!0, !7}
!0 = !{i32 1}
!7 = !{i32 2}
"""


def test_every_branch_has_a_loop_of_its_own_that_is_not_unrolled() -> None:
    module = rolled(_MODULE)
    nodes = re.findall(r"^  br .*, !llvm.loop !(\d+)$", module, re.MULTILINE)
    assert nodes == ["9", "10"]
    assert '\n!8 = !{ !"llvm.loop.unroll.disable" }\n' in module
    for node in nodes:
        assert f"\n!{node} = distinct !{{ !{node}, !8 }}\n" in module
    assert module.replace(", !llvm.loop !9", "").replace(", !llvm.loop !10", "").startswith(_MODULE)


def test_modules_without_nodes_begin_with_the_first() -> None:
    assert '\n!0 = !{ !"llvm.loop.unroll.disable" }\n' in rolled("  br label %a\n")


def _launch() -> KernelLaunch:
    return next(
        target.launch
        for target in targets_of_all(impls=("numba",))
        if (target.kernel, target.launch.name) == ("two_hop/rail", "dispatch")
    )


@pytest.mark.parametrize("is_virtual", [False, True])
def test_entries_read_each_parameter_by_its_place(is_virtual: bool) -> None:
    launch = _launch()
    text = cuda_kernel.entry_source(launch, 32, frozenset(), is_virtual=is_virtual)
    fields = launch.params._fields
    name = f"epbench_{launch.kernel.__name__}"
    assert f"{name}(i64 stride, i64 num_tokens_addr, " + ", ".join(
        f"i64 {field}" for field in fields
    ) + ") {" in " ".join(text.split())
    for place, field in enumerate(fields, start=2):
        (read,) = re.findall(rf"ep_param_{field}\(\) {{ return (.*); }}", text)
        if field == "num_tokens" and is_virtual:
            assert read == f'ep::load_i64(EP_PARAM("{name}_param_1") + 8 * ep::virtual_rank())'
            continue
        assert read.startswith(f'EP_PARAM("{name}_param_{place}")')
        rest = read.removeprefix(f'EP_PARAM("{name}_param_{place}")')
        varies = is_virtual and (field == "rank" or field.endswith("_addr"))
        assert bool(rest) == varies
        if varies and field != "rank":
            assert rest == f' + ep::virtual_rank() * EP_PARAM("{name}_param_0")'


@compiles()
def test_the_ptx_reads_parameters_by_these_names() -> None:
    launch = _launch()
    ptx = cuda_kernel.ptx_of(launch, 32, arch="sm_90")
    name = f"epbench_{launch.kernel.__name__}"
    declared = re.findall(rf"\.param \.u64 ({name}_param_\d+)", ptx)
    assert len(declared) == 2 + len(launch.params._fields)
    read = re.findall(rf"ld\.param\.u64 \S+ \[({name}_param_\d+)\]", ptx)
    assert set(read) <= set(declared)
    assert len(read) > len(set(read)) > 30
