"""What the kernels of `ring` share: channels, streams, epochs in words, and groups of warps.

A channel is two blocks, the even one sends and the odd one receives; it carries the rank's tokens
of one even, contiguous share. A stream is what one rank sends another in a channel: a ring and its
tail at the receiver, its head at the sender. Tail and head count a stream's rows of this epoch on
top of `base_of(epoch)`, so that no word is ever reset; a head of the next epoch's base says that
the ring is empty and this epoch over.
"""

from kernels import isa
from kernels.exchange import share_begin

EPOCH = 1 << 32


def base_of(epoch: int) -> int:
    """Return where the words of an epoch, counted from 0, begin."""
    return epoch * EPOCH


def channel_begin(num_tokens: int, channel: int, num_sms: int) -> int:
    """Return a channel's first token; the channel after the last begins at `num_tokens`."""
    return share_begin(num_tokens, channel, num_sms // 2)


def sync_group(group: int, num_warps: int) -> None:
    """Synchronise the warps of a group, numbered from 0; a group of one needs no barrier."""
    if num_warps > 1:
        isa.group_sync(group + 1, num_warps)


def room_for(base: int, num_sent: int, num_more: int, ring_rows: int) -> int:
    """Return the head at which a ring that `num_sent` rows went into has room for more."""
    return base + max(num_sent + num_more - ring_rows, 0)
