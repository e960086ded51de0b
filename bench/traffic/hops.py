"""The ranks that rows pass on their way, by route, as matrices of rows per link."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.traffic.plan import Plan

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Hop:
    """Rows between ranks over one kind of link.

    Attributes:
        rows: int64 `(R, R)`, from sender to receiver, 0 on the diagonal.
        bytes_per_row: physical bytes of each.
    """

    rows: Int64
    bytes_per_row: int


def direct_hops(plan: Plan, rows: Int64, row_bytes: int, *, via_peer: bool) -> tuple[Hop, Hop]:
    """Return the NVLink and NIC hop of `one_hop`, or of `pxn` where `via_peer`.

    Args:
        plan: sizes of the world.
        rows: int64 `(R, R)`, from first to last rank.
        row_bytes: physical bytes of each.
        via_peer: whether the rank of the own node with the destination's local rank sends.
    """
    size, per_node = plan.world_size, plan.ranks_per_node
    same_node = _same_node(plan)
    nvlink = np.where(same_node, rows, 0)
    nic = np.where(same_node, 0, rows)
    if via_peer:
        by_node = nic.reshape(plan.num_nodes, per_node, plan.num_nodes, per_node)
        # Local rank j of a node sends by NIC what its node has for local rank j of others.
        to_peer = by_node.sum(axis=2)
        for node in range(plan.num_nodes):
            block = slice(node * per_node, (node + 1) * per_node)
            nvlink[block, block] += to_peer[node]
        sent = by_node.sum(axis=1)
        nic = np.zeros((plan.num_nodes, per_node, plan.num_nodes, per_node), np.int64)
        local = np.arange(per_node)
        nic[:, local, :, local] = np.moveaxis(sent, 2, 0)
        nic = nic.reshape(size, size)
    np.fill_diagonal(nvlink, 0)
    return Hop(nvlink, row_bytes), Hop(nic, row_bytes)


def rail_hops(
    plan: Plan, rows: Int64, row_bytes: int, node_row_bytes: int, *, reverse: bool
) -> tuple[Hop, Hop]:
    """Return the NVLink and NIC hop of `rail`.

    Args:
        plan: counts of the routing.
        rows: int64 `(R, R)`, from source to owner.
        row_bytes: physical bytes of a row over NVLink.
        node_row_bytes: physical bytes of the row of a (token, node) over the NIC.
        reverse: the rows go from owner to source.
    """
    size, per_node = plan.world_size, plan.ranks_per_node
    nvlink = np.where(_same_node(plan), rows, 0)
    by_node = np.where(_same_node(plan), 0, rows).reshape(plan.num_nodes, per_node, size)
    # The forwarder of local rank j gets the rows of every source with local rank j.
    forwarded = by_node.sum(axis=0)
    for node in range(plan.num_nodes):
        block = slice(node * per_node, (node + 1) * per_node)
        nvlink[block, block] += forwarded[:, block]
    np.fill_diagonal(nvlink, 0)
    nic = np.zeros((size, size), np.int64)
    source = np.arange(size)
    for node in range(plan.num_nodes):
        nic[source, node * per_node + source % per_node] = plan.node_copies[:, node]
    np.fill_diagonal(nic, 0)
    if reverse:
        nvlink, nic = nvlink.T, nic.T
    return Hop(nvlink, row_bytes), Hop(nic, node_row_bytes)


def _same_node(plan: Plan) -> npt.NDArray[np.bool_]:
    node = np.arange(plan.world_size) // plan.ranks_per_node
    same: npt.NDArray[np.bool_] = node[:, None] == node
    return same
