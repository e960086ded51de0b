"""Equal splits, on all SMs: take the real rows out of them, put those that go back into them.

Every message of an exchange with equal splits has as many rows as the longest; the others end in
padding, which moves as it is and is never looked at. `compact` copies the real rows of each source
to `recv_x`, which has no gaps, and keeps each one's place in the splits in `recv_places`. `spread`
puts the rows that go back there. Item (source, part) of `compact` is an even, contiguous share of
the rows of one source; worker w takes items w, w + workers, ...; `spread` gives each worker an
even, contiguous share of rows. No block waits for another.
"""

from typing import NamedTuple

from kernels import isa
from kernels.exchange import share_begin

#: Bytes of ids that one copy takes, not more than a slot of any device.
_IDS_BYTES = 4096


class CompactParams(NamedTuple):
    """Parameters of `compact`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    world_size: int
    num_sms: int
    num_warps: int
    ids_bytes: int
    x_row_bytes: int
    stage_x_addr: int
    stage_idx_addr: int
    stage_weights_addr: int
    recv_x: int
    recv_topk_idx: int
    recv_topk_weights: int
    recv_counts_addr: int
    recv_begins_addr: int
    pair_begins_addr: int
    num_recv_addr: int
    recv_places_addr: int


def compact(p: CompactParams) -> None:
    """Copy received rows, ids and weights to their final places."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    num_workers = p.num_sms * p.num_warps
    num_parts = (num_workers + p.world_size - 1) // p.world_size
    if worker == 0:
        last = 4 * (p.world_size - 1)
        before = isa.load_i32(p.pair_begins_addr + last)
        isa.store_i32(p.num_recv_addr, before + isa.load_i32(p.recv_counts_addr + last))
    for item in range(worker, p.world_size * num_parts, num_workers):
        source, part = item // num_parts, item % num_parts
        count = isa.load_i32(p.recv_counts_addr + 4 * source)
        first = share_begin(count, part, num_parts)
        num_rows = share_begin(count, part + 1, num_parts) - first
        if num_rows > 0:
            place = isa.load_i32(p.recv_begins_addr + 4 * source) + first
            row = isa.load_i32(p.pair_begins_addr + 4 * source) + first
            move_in(p, place, row, num_rows)


def move_in(p: CompactParams, place: int, row: int, num_rows: int) -> None:
    """Copy rows that follow each other from their place in the splits to their final place."""
    for index in range(num_rows):
        source = p.stage_x_addr + (place + index) * p.x_row_bytes
        isa.copy_row(p.rank, p.recv_x + (row + index) * p.x_row_bytes, source, p.x_row_bytes)
        isa.store_i32(p.recv_places_addr + 4 * (row + index), place + index)
    chunk = max(_IDS_BYTES // p.ids_bytes, 1)
    for index in range(0, num_rows, chunk):
        num_bytes = min(chunk, num_rows - index) * p.ids_bytes
        source, into = (place + index) * p.ids_bytes, (row + index) * p.ids_bytes
        isa.copy_bytes(p.rank, p.recv_topk_idx + into, p.stage_idx_addr + source, num_bytes)
        isa.copy_bytes(p.rank, p.recv_topk_weights + into, p.stage_weights_addr + source, num_bytes)


class SpreadParams(NamedTuple):
    """Parameters of `spread`; fields named after regions are offsets, `_addr` addresses."""

    rank: int
    num_sms: int
    num_warps: int
    y_row_bytes: int
    y_addr: int
    back_y: int
    num_recv_addr: int
    recv_places_addr: int


def spread(p: SpreadParams) -> None:
    """Copy the experts' outputs to their places in equal splits."""
    worker = isa.sm_id() * p.num_warps + isa.warp_id()
    num_workers = p.num_sms * p.num_warps
    num_recv = isa.load_i32(p.num_recv_addr)
    first = share_begin(num_recv, worker, num_workers)
    for row in range(first, share_begin(num_recv, worker + 1, num_workers)):
        place = isa.load_i32(p.recv_places_addr + 4 * row)
        source = p.y_addr + row * p.y_row_bytes
        isa.copy_row(p.rank, p.back_y + place * p.y_row_bytes, source, p.y_row_bytes)
