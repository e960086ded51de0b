"""Steps that several protocols share: signals that find their way, even shares of tokens."""

from kernels import isa

#: Why rows cannot go to other nodes in one hop.
NO_PATH = (
    "needs a NIC path from every GPU to every other node's, which cross_rail = forbidden rules out"
)


def is_same_node(rank: int, other: int, ranks_per_node: int) -> int:
    """Return 1 where loads and stores reach from one rank to the other, else 0."""
    return 1 if rank // ranks_per_node == other // ranks_per_node else 0


def signal(rank: int, peer: int, ranks_per_node: int, flag: int, value: int, channel: int) -> None:
    """Add to a flag of any rank; a `fence_release` must precede it, and puts go by `channel`."""
    if is_same_node(rank, peer, ranks_per_node):
        isa.add(peer, flag, value)
    else:
        isa.put_signal(peer, flag, value, channel)


def via_rank(rank: int, peer: int, ranks_per_node: int, rails: int) -> int:
    """Return the rank of this node whose NIC reaches `peer`: the own, or the rail's if separate."""
    if rails:
        return rank // ranks_per_node * ranks_per_node + peer % ranks_per_node
    return rank


def share_begin(total: int, index: int, num_shares: int) -> int:
    """Return where share `index` of `num_shares` even, contiguous shares begins."""
    return total * index // num_shares
