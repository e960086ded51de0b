"""Ranks on GPUs: which card each has, memory that all of them address, NCCL, and their errors.

Nothing here imports a GPU package before a GPU is asked for.
"""
