"""What a routing moves: row counts, hops between ports, and the bounds that follow."""
