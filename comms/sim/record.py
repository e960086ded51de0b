"""The recorder: what warps and ports do in virtual time, written to an array of fixed length.

It is off while the header's `records` is 0, which each hook asks once. Hooks only write records, so
that a run takes the same virtual time with and without it. A record is of one of four kinds, which
share their fields; `rank`, `launch`, `sm` and `warp` are of the warp that issued it:

    WAIT: a warp waits from `begin` to `end` (-1 while it does) at `line`; `code` is its state, and
        of a flag `offset`, the value `seen` and the `value` wanted, or the number of words.
    MARK: a warp enters stage `code` at `begin`, or ends (-1).
    PASS: bytes pass pipe `code` of an SM from `begin` to `end`, as their warp is concerned; they
        occupy it for `value` until `seen`.
    HOP: a transfer of kind `code`, whose instruction began at `issued`, leaves `port` of rank
        `source` at `begin` for rank `peer`, where it arrives at `end`; it occupies the port for
        `value`, and the one that it enters for `seen` until `end`.
"""

from typing import NamedTuple

import numpy as np

from comms.compiling import inner
from comms.fiber import switch
from comms.raw import record_at, word_at
from comms.sim.state import (
    DONE,
    HBM,
    HBM_DONE,
    L2,
    NUM_PORTS,
    READY,
    WAIT_ANY,
    WAIT_GE,
    block_at,
    cost,
    header,
    port_at,
    rank_at,
    transfer_at,
    warp_at,
)

#: Kinds of a record; 0 is one that was never written.
WAIT, MARK, PASS, HOP = range(1, 5)
#: Pipes of an SM: rows pass the first, their sums the second.
COPY_PIPE, REDUCE_PIPE = range(2)
RECORD = np.dtype(
    [
        (field, np.int64)
        for field in (
            *("what", "rank", "launch", "sm", "warp", "begin", "end", "code", "line", "offset"),
            *("value", "seen", "num_bytes", "issued", "port", "source", "peer"),
        )
    ]
)
RECORD_BYTES = RECORD.itemsize


@inner
def new_record(e: int, what: int, warp: int, begin: int) -> int:
    """Return the address of a new record of a warp, 0 where there is no room for it."""
    h = header(e)
    if h.num_records == h.max_records:
        h.num_dropped += 1
        return 0
    at = h.records + h.num_records * RECORD_BYTES
    h.num_records += 1
    record, w = record_at(at, RECORD), warp_at(e, warp)
    record.what, record.begin, record.line = what, begin, w.line
    record.rank, record.launch = w.rank, rank_at(e, w.rank).launch
    record.sm, record.warp = block_at(e, w.block).sm, w.index
    return at


@inner
def is_recorded(e: int, warp: int) -> bool:
    """Return whether the recorder is on and a warp's rank is one that it records."""
    return header(e).records != 0 and rank_at(e, warp_at(e, warp).rank).recorded != 0


@inner
def run_recorded(e: int, warp: int) -> None:
    """Let a warp run until it suspends; record the wait that ends and the one that begins."""
    h, w = header(e), warp_at(e, warp)
    if w.record != 0:
        record_at(w.record, RECORD).end = h.now
        w.record = 0
    switch(h.main_context, w.context)
    if w.state == READY:
        return
    if w.state == DONE:
        record_mark(e, warp, -1)
        return
    if rank_at(e, w.rank).recorded == 0:
        return
    at = new_record(e, WAIT, warp, h.now)
    if at == 0:
        return
    w.record = at
    record = record_at(at, RECORD)
    record.code, record.end = w.state, -1
    if w.state == WAIT_GE or w.state == WAIT_ANY:
        record.offset = w.wait_offset
        record.value = w.wait_value if w.state == WAIT_GE else w.wait_count
        record.seen = word_at(rank_at(e, w.rank).base + w.wait_offset)[0]


@inner
def record_wait(e: int, warp: int, state: int, begin: int, end: int) -> None:
    """Record a wait whose end is known."""
    if is_recorded(e, warp):
        at = new_record(e, WAIT, warp, begin)
        if at != 0:
            record = record_at(at, RECORD)
            record.code, record.end = state, end


@inner
def record_mark(e: int, warp: int, stage: int) -> None:
    """Record that a warp enters a stage, or ends."""
    if is_recorded(e, warp):
        at = new_record(e, MARK, warp, header(e).now + warp_at(e, warp).debt)
        if at != 0:
            record_at(at, RECORD).code = stage


class Passage(NamedTuple):
    """Bytes on their way through a pipe of an SM.

    Attributes:
        begin: when their warp's instruction began.
        end: when they have passed, as their warp is concerned.
        busy_ps: how long they occupy the pipe.
        busy_end: until when.
        num_bytes: bytes charged.
    """

    begin: int
    end: int
    busy_ps: int
    busy_end: int
    num_bytes: int


@inner
def record_pass(e: int, warp: int, pipe: int, passage: Passage) -> None:
    """Record bytes that pass a pipe of the warp's SM."""
    if is_recorded(e, warp):
        at = new_record(e, PASS, warp, passage.begin)
        if at != 0:
            record = record_at(at, RECORD)
            record.code, record.end, record.num_bytes = pipe, passage.end, passage.num_bytes
            record.value, record.seen = passage.busy_ps, passage.busy_end


@inner
def record_hop(e: int, port: int, transfer: int) -> None:
    """Record a transfer that arrives at `port` now, by a link or in memory."""
    t = transfer_at(e, transfer)
    kind = port % NUM_PORTS
    if kind == L2 or (
        rank_at(e, t.src_rank).recorded == 0 and rank_at(e, t.dst_rank).recorded == 0
    ):
        return
    left_by = HBM if kind == HBM_DONE else kind - 1
    at = new_record(e, HOP, t.warp, t.left)
    if at == 0:
        return
    record = record_at(at, RECORD)
    record.code, record.end = t.kind, header(e).now
    record.num_bytes, record.issued, record.offset = t.bytes, t.issued, t.offset
    record.value = t.served
    if kind != HBM_DONE:
        record.seen = cost(t.bytes, port_at(e, port).mbps)
    record.port, record.source, record.peer = left_by, t.src_rank, t.dst_rank
