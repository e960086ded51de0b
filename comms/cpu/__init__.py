"""Kernels in real memory: each SM is a thread of the rank's process, its warps are fibers on it."""
