"""GPUs: compilers, which card a rank has, memory that all ranks address, NCCL, and their errors.

Nothing here imports a GPU package before a GPU is asked for.
"""
