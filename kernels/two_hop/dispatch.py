"""`two_hop` dispatch: one copy per node over the rail, forwarded into final places over NVLink.

Grid: `num_sms` blocks that all do the same. Of a block's warps the first `channel_warps` post, as
many serve the own node, and the rest forward. Tokens are cut into even, contiguous shares, one for
each channel c = sm * channel_warps + i: its poster writes one copy of each token to every other
node that owns one of its experts, to the rank there with this rank's local rank, and its near warp
writes the token's rows on this node. So a NIC reads `x` itself and costs no SM time, and NVLink has
work from the first moment on.

Places (fresh). Near warps count their tokens by rank, posters by node; each block adds 1 to
`counted` (own rank). Block 0 acquires it, puts the rank's counts into `counts` of its rail peers,
with the rows that each channel will send there, and signals `rail_hello`; the peer acquires it,
copies the counts to the ranks of its node and adds 1 to `hello[source]` there (release). Ranks of
the own node are told directly. Every block acquires `hello` of all ranks, from which each channel
knows the final row of each of its tokens at each rank. `counts` and `incoming` have two buffers,
used in turn by fresh dispatches: who writes one for the second time has acquired the `hello` in
between of all ranks, each of which sent it after it had read the first. Cached: all of this was
kept.

Rows. Every rank adds 1 to `grant[local_rank]` of its node: its `recv_x` may be overwritten. Near
warps and forwarders have acquired it of their node. A stream is (source node, channel) at its
destination: a ring of `ring_rows` rows, each with a record: the row's final place at each local
rank, -1 for none, and the token's ids and weights. The poster puts `chunk_rows` rows into
the ring, then their records, and signals `tail` (which covers them, since they use the same
channel). Before a chunk it acquires `credit` of that stream (own rank). A forwarder serves streams
f, f + F, ... (F forwarders), whichever of them has a chunk, acquires `tail`, writes its rows to
their final places, releases them, and signals `credit` at the source: by then the chunk has been
read. Both sides
keep the stream's rows of all epochs, chunks rounded up, so nothing is reset.

Each block ends by adding 1 to `done` of its node's ranks (release). Block 0 acquires it, num_sms an
epoch from each of them: all that writes to `recv_x` is on the own node. A poster ends when its puts
have completed, so that `x` may be overwritten.

It cannot deadlock. `counted`, `grant` and a rank's own counts are sent before anything of another
rank is waited for; `hello` waits for `rail_hello`, which waits for `counted` only; near warps wait
for `hello` and `grant`; forwarders for those and for `tail`; posters for `hello` and for `credit`,
that is for the forwarding of an earlier chunk of the same stream: forwarders wait for no credit.
`done` is waited for last. A ring of one chunk of one row is enough. Blocks must be resident
together.
"""

from kernels import isa
from kernels.two_hop.forwarders import forward_rows
from kernels.two_hop.params import DispatchParams
from kernels.two_hop.places import count_share, learn_places, tell_counts
from kernels.two_hop.senders import post_rows, send_near

COUNTING, EXCHANGING, POSTING, SENDING, FORWARDING, ENDING = range(6)


def dispatch(p: DispatchParams) -> None:
    """Send every token once to each node, and there to each rank that owns one of its experts."""
    begin(p)
    if isa.warp_id() < p.channel_warps:
        isa.mark(POSTING)
        post_rows(p)
    elif isa.warp_id() < 2 * p.channel_warps:
        isa.mark(SENDING)
        send_near(p)
    else:
        isa.mark(FORWARDING)
        forward_rows(p)
    isa.mark(ENDING)
    end(p)


def begin(p: DispatchParams) -> None:
    """Tell and learn where rows go, and that they may go there."""
    sm, warp = isa.sm_id(), isa.warp_id()
    epoch = isa.load(p.dispatch_epoch + 8 * sm) + 1
    fresh = isa.load(p.fresh_epoch + 8 * sm) + 1 - p.cached

    isa.mark(COUNTING)
    if sm == 0:
        # Earlier kernels have ended: there is nothing to release.
        first_rank = p.rank - p.rank % p.ranks_per_node
        for local in range(warp, p.ranks_per_node, p.num_warps):
            isa.add(first_rank + local, p.grant + 8 * (p.rank % p.ranks_per_node), 1)
    if not p.cached:
        count_share(p, sm, warp)
        isa.block_sync()
        if warp == 0:
            isa.fence_release()
            isa.add(p.rank, p.counted, 1)
        isa.mark(EXCHANGING)
        if sm == 0:
            tell_counts(p, warp, fresh)
        for source in range(warp, p.world_size, p.num_warps):
            isa.wait_ge(p.hello + 8 * source, fresh)
    isa.mark(EXCHANGING)
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.wait_ge(p.grant + 8 * local, epoch)
    isa.block_sync()
    if not p.cached:
        learn_places(p, sm, warp, fresh)
        isa.block_sync()


def end(p: DispatchParams) -> None:
    """Tell the node's ranks that their rows have been written; end the epoch."""
    sm, warp = isa.sm_id(), isa.warp_id()
    first_rank = p.rank - p.rank % p.ranks_per_node
    if sm == 0 and warp == 0:
        # The counts that were put stay as they are until the NIC has read them.
        isa.put_wait(2 * p.num_sms * p.channel_warps)
    isa.block_sync()
    isa.fence_release()
    for local in range(warp, p.ranks_per_node, p.num_warps):
        isa.add(first_rank + local, p.done, 1)
    if warp == 0:
        epoch = isa.load_i64(p.dispatch_epoch_addr + 8 * sm) + 1
        fresh = isa.load_i64(p.fresh_epoch_addr + 8 * sm) + 1 - p.cached
        isa.store(p.rank, p.dispatch_epoch + 8 * sm, epoch)
        isa.store(p.rank, p.fresh_epoch + 8 * sm, fresh)
        if sm == 0:
            isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)
