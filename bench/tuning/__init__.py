"""Tuning: searching the knobs of kernels, checking what was found, and files that runs take."""
