"""Devices: what binds a protocol's kernels, holds its memory and runs them."""
