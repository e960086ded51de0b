"""The virtual-time engine: warps are fibers, links are queues, time is integer picoseconds."""
