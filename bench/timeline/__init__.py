"""The timeline of one case on the simulator: its trace file, and what bounded it."""
