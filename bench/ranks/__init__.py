"""Runs whose ranks are processes: the job that a lone process starts, the ranks, their endings."""
