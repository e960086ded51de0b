"""The virtual-time engine: warps as fibers, links as queues, one event heap, integer picoseconds."""
