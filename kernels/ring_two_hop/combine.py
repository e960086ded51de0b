"""`ring_two_hop` combine: rows back over NVLink, summed by node, sums back over the rail.

A restatement of DeepEP V1's inter-node kernel. Grid: channels as in dispatch, whose counts are
used. Block 2c has a sender warp for each local rank, receiver warps and their coordinator; block
2c + 1 forwarder warps in equal groups, one for each node, and their coordinator. A node's rows of a
token are added by the rank that forwarded the token: the one on the rail of the token's rank.
`combine_notify` ran before: all rings are empty. Counters are as in dispatch.

1. Sender i copies the rows of `y` that came by local rank i into the ring of (channel, this local
rank, node) there, for each node in turn at most `combine_nvl_send`, and releases `back_nvl_tail`.
It first acquires `back_nvl_credit` (own rank) for so many rows. A node has a part of the ring of
its own, so that no node's rows wait behind another's.
2. The forwarders of a node take the channel's records of that node in order, in chunks of
`combine_rdma_send`. They acquire `back_credit` (own rank) until the chunk's slots are free. Each
acquires `back_nvl_tail` of the ranks that add to its record, sums their rows in ascending order of
local ranks into the send ring, for the own node into the receiving ring, and releases `summed`: the
record it takes next. After a chunk the group synchronises, its first warp puts the chunk and
signals `back_tail`; for the own node it releases it.
3. The forwarder coordinator acquires `summed` and stores, as `back_nvl_credit` at each local rank,
how many of its rows the records before the earliest unfinished one have used.
4. Receivers take the channel's tokens in turn, acquire `back_tail` of each node of a token, sum in
ascending order of nodes into `out`, and release `reduced`: the token they take next.
5. The receiver coordinator acquires `reduced` and gives the slots of the tokens before the earliest
unfinished one back as `back_credit`, at `combine_rdma_send` sums or at the end, on a network
channel of its own.

Wait graph: senders for `back_nvl_credit`, that is for forwarders of earlier records; forwarders for
`back_nvl_tail` of their record and for `back_credit`, that is for receivers of earlier tokens;
receivers for `back_tail` of their token. It has no cycle. Take the earliest token of a rank and
channel that is not received, and a node whose sum of it is missing: of the sums before it there
less than a chunk is not given back, and a ring holds two chunks, so its chunk has room. The rows of
the earliest unfinished record at that node are next in their parts of the NVLink rings: all before
them have been used and are given back, and a part has room for `combine_nvl_send` rows. It holds
more than a chunk's rows, so it never matters that a chunk is put as a whole. A sender passes over
nodes without room, so it comes to that part. Blocks must be resident together.

The kernel ends when every sum is in `out`; `y` has been read, since a release waits for the copies
before it.

Unlike V1: who adds to a record, and by which row, follows from counts that forwarders of dispatch
kept (`nvl_ends`), so no heads need to be rewritten before combine; forwarders and receivers release
what they have read by system-scope releases, where V1 has words in shared memory; rings of dispatch
and combine are apart; `topk_weights` are not summed; the last credits are given back too.
"""

from kernels import isa
from kernels.ring_two_hop.combine_forwarders import return_nvl_credits, sum_records
from kernels.ring_two_hop.combine_receivers import receive_sums, return_credits
from kernels.ring_two_hop.combine_senders import push_rows
from kernels.ring_two_hop.params import EPOCH, WORKER_WARPS, CombineParams, Place, channel_of

PUSHING, REDUCING, RECEIVING, CREDITING = range(7, 11)


def combine(p: CombineParams) -> None:
    """Sum each token's rows inside their nodes, then the nodes' sums at its rank."""
    sm, warp = isa.sm_id(), isa.warp_id()
    place = Place(
        p.rank // p.ranks_per_node,
        p.rank % p.ranks_per_node,
        (isa.load(p.combine_epoch) - 1) * EPOCH,
    )
    if sm % 2 == 1:
        group_warps = WORKER_WARPS // p.num_nodes
        if warp < group_warps * p.num_nodes:
            isa.mark(REDUCING)
            sum_records(p, place)
        elif warp == WORKER_WARPS:
            isa.mark(CREDITING)
            return_nvl_credits(p, place)
    elif warp < p.ranks_per_node:
        isa.mark(PUSHING)
        # Channels start at different peers, so that all links are busy at once.
        push_rows(p, place, (warp + channel_of()) % p.ranks_per_node)
    elif warp < WORKER_WARPS:
        isa.mark(RECEIVING)
        receive_sums(p, place, warp - p.ranks_per_node)
    else:
        isa.mark(CREDITING)
        return_credits(p, place)
