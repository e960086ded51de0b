"""`direct` of CUDA C++: the same protocols with the kernels of this folder's `.cu` files."""

from dataclasses import replace

from kernels.direct.combine_pull import combine_pull
from kernels.isa.cxx_kernel import cxx_kernel
