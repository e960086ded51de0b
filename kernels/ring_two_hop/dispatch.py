"""`ring_two_hop` dispatch: rings over the rail, then rings over NVLink, as in DeepSeek-V3.

A restatement of DeepEP V1's inter-node kernel. Grid: channel c is blocks 2c and 2c + 1 and owns an
even, contiguous share of the rank's tokens. Block 2c + 1 has 7 sender warps, their coordinator, and
a receiver warp for each local rank; block 2c a forwarder warp for each local rank, and their
coordinator. A rank puts to, and forwards for, ranks of other nodes with its own local rank only:
its rail. `notify` ran before: all rings are empty and everybody's counts are known.

A record is a row and its info: source node, a mask of the local ranks that want it, the token's ids
and weights; rows and infos lie in arrays side by side. Counters of rows begin an epoch at `base` =
(epoch - 1) x 2^32; those of other nodes are added to, and the last add of an epoch makes up 2^32.
Counts are stored as epoch x 2^32 + count.

1. Senders tell each node of the channel's rows (`channel_meta`: for each local rank and for the
node, the first and the one after the last, among all that this rank has for it) and signal `told`.
Sender w takes tokens w, w + 7, ...; for each node of a token it acquires `rdma_credit` (own rank)
until the record's slot is free, and writes the record into the send ring of (channel, node), for
the own node straight into the receiving ring. It then releases `filled`: the token it takes next.
2. The sender coordinator acquires `filled` in the order of tokens, puts each node's records in
chunks of `dispatch_rdma_send`, and signals `rdma_tail` there; for the own node it releases it.
3. Forwarder j acquires `told` and stores each source node's rows for local rank j to `nvl_spans`
there. It acquires `rdma_tail` of the nodes in turn and copies the records whose mask has j into the
ring of (channel, this local rank) at rank j, with ids made local, at most `dispatch_nvl_send`
before it releases `nvl_tail` there and stores `forwarded` (own rank). It first acquires
`nvl_credit` (own rank) for so many rows.
4. The forwarder coordinator acquires `forwarded` and gives what all forwarders have gone through
back to the source as `rdma_credit`, at `dispatch_rdma_send` records or at the end, on a network
channel of its own.
5. Receiver i acquires `nvl_spans` and `nvl_tail`, copies rows to their final places (order: source
rank, source token), and releases `nvl_credit` at forwarder i.

Wait graph: senders for `rdma_credit`, from the forwarder coordinator, which waits for forwarders;
the sender coordinator for senders; forwarders for `rdma_tail` and `nvl_credit`; receivers for
`nvl_tail` only. It has no cycle. Take the first token of a channel that a sender waits with, and
the node whose ring is full: all records before it are written, less than a chunk of them is not
put, and of those forwarded less than a chunk is not given back. The ring holds two chunks at least,
so some record that was put is still to be forwarded. A forwarder waits for records only when it has
released all that it has sent, and else for a receiver; receivers wait for no room. Blocks must be
resident together.

The kernel ends when every row is in its place; `x` has been read into the send rings, which are
written again after the next `notify`, when rail peers have emptied them. What combine needs
(`channel_meta`, `nvl_spans`, `nvl_ends`) is overwritten after that barrier too.

Unlike V1: senders release each token, and forwarders each chunk, by a system-scope release, where
V1 has block-scope ones in shared memory; ids are made local by the forwarder, not by the receiver;
a chunk is two puts and a signal, not one put; rings of dispatch and combine are apart; the last
credits of an epoch are given back too, so that counters need no reset.
"""

from kernels import isa
from kernels.ring_two_hop.dispatch_forwarders import forward_rows, return_credits
from kernels.ring_two_hop.dispatch_receivers import receive_rows
from kernels.ring_two_hop.dispatch_senders import fill_rings, put_chunks
from kernels.ring_two_hop.params import EPOCH, SENDER_WARPS, DispatchParams, Place, channel_of

SENDING, PUTTING, FORWARDING, CREDITING, RECEIVING = range(2, 7)


def dispatch(p: DispatchParams) -> None:
    """Send every token once to each node, and there to each rank that owns one of its experts."""
    sm, warp = isa.sm_id(), isa.warp_id()
    place = Place(
        p.rank // p.ranks_per_node,
        p.rank % p.ranks_per_node,
        (isa.load(p.dispatch_epoch) - 1) * EPOCH,
    )
    if sm % 2 == 1:
        if warp < SENDER_WARPS:
            isa.mark(SENDING)
            fill_rings(p, place, warp)
        elif warp == SENDER_WARPS:
            isa.mark(PUTTING)
            put_chunks(p, place)
        elif warp - SENDER_WARPS - 1 < p.ranks_per_node:
            isa.mark(RECEIVING)
            receive_rows(p, place, warp - SENDER_WARPS - 1)
    elif warp < p.ranks_per_node:
        isa.mark(FORWARDING)
        # Channels start at different peers, so that all links are busy at once.
        forward_rows(p, place, (warp + channel_of()) % p.ranks_per_node)
    elif warp == p.ranks_per_node:
        isa.mark(CREDITING)
        return_credits(p, place)
