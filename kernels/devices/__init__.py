"""Devices: what binds a protocol's kernels, holds its memory and runs them."""

#: Threads that device `cpu` makes of a rank's SMs at most.
MAX_CPU_SMS = 64
