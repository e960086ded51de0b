"""Ranks that are processes: who they are, what they share, how they are started and found dead.

Nothing here imports `mpi4py.MPI` before ranks are asked for: that loads and checks the library.
"""
