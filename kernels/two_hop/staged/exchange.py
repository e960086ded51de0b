"""What the host asks of the library in `two_hop/staged`: counts, then rows over the rail and back.

A rank exchanges rows only with the ranks of its own local rank, one on each other node.
"""

import numpy as np

from comms.collectives import HostArray, Rows, RowSplits, starts
from kernels.protocol import HostCall
from kernels.shape import Shape


def counts(host: HostCall) -> None:
    """Tell every rank the counts of all, by rank and by node, and let the host have a copy."""
    counts_bytes = host.number("counts_bytes")
    own = host.view("own_counts", np.uint8)
    everyone = host.view("all_counts", np.int32)[: host.shape.world_size * counts_bytes // 4]
    host.library.gather([Rows(own, everyone.view(np.uint8), counts_bytes)], 1)
    host.library.fetch([everyone])


def sizes(host: HostCall) -> None:
    """Wait for the counts and keep what goes over the rail."""
    (found,) = host.library.fetched()
    by_node = found.reshape(host.shape.world_size, -1)[:, host.shape.world_size :]
    host.kept["rail"] = rail_splits(by_node, host.comm.rank, host.shape)


def rail_splits(by_node: HostArray, rank: int, shape: Shape) -> RowSplits:
    """Return which rows a rank sends to its rail peers and gets from them.

    It sends rows in the order of nodes, with a gap where those of its own node would be, and gets
    them in that order, too, with none.

    Args:
        by_node: tokens that go from each rank to each node, integers `(world_size, num_nodes)` or
            more columns.
        rank: which one.
        shape: sizes.
    """
    node, local = divmod(rank, shape.ranks_per_node)
    peers = np.arange(shape.num_nodes) * shape.ranks_per_node + local
    to_nodes = by_node[rank, : shape.num_nodes].astype(np.int64)
    from_nodes = by_node[peers, node].astype(np.int64)
    from_nodes[node] = 0
    send_begins = starts(to_nodes)
    to_nodes[node] = 0
    columns = []
    for each in (send_begins, to_nodes, starts(from_nodes), from_nodes):
        column = np.zeros(shape.world_size, np.int64)
        column[peers] = each
        columns.append(column)
    return RowSplits(*columns)


def rail(host: HostCall) -> None:
    """Take one copy of each token to each other node, with its record."""
    x = Rows(
        host.view("stage_x", np.uint8),
        host.view("rail_x", np.uint8),
        host.shape.dispatch_row.stride_bytes,
    )
    records = Rows(
        host.view("stage_records", np.uint8),
        host.view("rail_records", np.uint8),
        host.number("record_bytes"),
    )
    host.library.exchange([x, records], host.kept["rail"])


def rail_back(host: HostCall) -> None:
    """Take one sum of each token home from each other node."""
    sums = Rows(
        host.view("rail_back", np.uint8),
        host.view("back", np.uint8),
        host.shape.combine_row.stride_bytes,
    )
    host.library.exchange([sums], host.kept["rail"].back())
