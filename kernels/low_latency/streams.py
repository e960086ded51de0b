"""How the warps that send share the ranks that they send to.

Rows between two ranks, a source of tokens and an owner of experts, are numbered by g in the order
of the source's selections, in dispatch and in combine alike. A stream is (peer, part): the rows g
with g % num_parts == part, in ascending order; a peer's parts have as many rows each, give or take
one, whatever the routing. A word of the peer counts a stream's rows that are there; its last add of
an epoch makes up 2^32, so row g is there when the word of part g % num_parts is at least
(epoch - 1) * 2^32 + g // num_parts + 1.

Streams to other nodes come first: a warp posts their rows and goes on, so that the NIC is busy
while NVLink's rows pass through the SMs. A few streams keep a NIC busy, so there are only as many
parts as make `MIN_FAR_STREAMS`; a row over NVLink holds its warp, so there the parts give each warp
a stream. Ranks of a node begin at different peers, so that nobody is everybody's first.
"""

from typing import NamedTuple

from kernels.shape import Shape

#: Streams to other nodes that post at once at least: a post takes less time than a row on the NIC.
MIN_FAR_STREAMS = 8
#: What a stream's word grows by in an epoch.
EPOCH = 1 << 32


class Team(NamedTuple):
    """The warps of a launch that do one thing, and this warp's place among them.

    Attributes:
        worker: this warp among all of the rank's.
        num_workers: all of them.
        member: this warp among its block's.
        size: those of a block.
    """

    worker: int
    num_workers: int
    member: int
    size: int


def team_of(sm: int, num_sms: int, member: int, size: int) -> Team:
    """Return the team that `size` warps of each block make up."""
    return Team(sm * size + member, num_sms * size, member, size)


class Cut(NamedTuple):
    """How a rank's peers are cut into streams.

    Attributes:
        rank: this rank.
        world_size: ranks.
        ranks_per_node: ranks of a node.
        near_parts: streams to each rank of the own node.
        far_parts: streams to each other rank.
    """

    rank: int
    world_size: int
    ranks_per_node: int
    near_parts: int
    far_parts: int


class Stream(NamedTuple):
    """What one warp sends to one peer, in order."""

    peer: int
    part: int
    num_parts: int


def parts_of(shape: Shape, num_senders: int) -> tuple[int, int]:
    """Return the parts of a peer on the own node and of one elsewhere, for so many warps."""
    num_far = shape.world_size - shape.ranks_per_node
    rows = -(-shape.num_tokens * shape.num_topk // shape.world_size)
    near = max(min(num_senders // shape.ranks_per_node, rows), 1)
    return near, -(-MIN_FAR_STREAMS // num_far) if num_far else 1


def num_streams(cut: Cut) -> int:
    """Return the streams of a rank."""
    num_far = cut.world_size - cut.ranks_per_node
    return num_far * cut.far_parts + cut.ranks_per_node * cut.near_parts


def stream_at(cut: Cut, index: int) -> Stream:
    """Return a stream by its number."""
    num_far = cut.world_size - cut.ranks_per_node
    local = cut.rank % cut.ranks_per_node
    first = cut.rank - local
    if index < num_far * cut.far_parts:
        distance = cut.ranks_per_node + (index + local) % num_far
        return Stream((first + distance) % cut.world_size, index // num_far, cut.far_parts)
    near = index - num_far * cut.far_parts
    peer = first + (local + 1 + near) % cut.ranks_per_node
    return Stream(peer, near // cut.ranks_per_node, cut.near_parts)


def parts_between(cut: Cut, peer: int) -> int:
    """Return the parts of the streams between this rank and a peer, the same both ways."""
    if peer // cut.ranks_per_node == cut.rank // cut.ranks_per_node:
        return cut.near_parts
    return cut.far_parts
