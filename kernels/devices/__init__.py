"""Devices: what binds a protocol's kernels, holds its memory and runs them."""

#: Threads that device `cpu` makes of a rank's SMs at most.
MAX_CPU_SMS = 64
#: Selections of a token that device `cuda` has lanes for: `MOST_TOPK` of `kernels.isa.cuda`, which
#: is not imported here because it loads numba-cuda.
MAX_CUDA_TOPK = 32
