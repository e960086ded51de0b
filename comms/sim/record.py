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
    NUM_PORTS,
    READY,
    WAIT_ANY,
    WAIT_GE,
    block_at,
    header,
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
def suspend_recorded(e: int, warp: int) -> None:
    """Suspend a warp and record what it waits for, unless it only passes time."""
    h, w = header(e), warp_at(e, warp)
    at = 0
    if w.state not in (READY, DONE) and is_recorded(e, warp):
        at = new_record(e, WAIT, warp, h.now)
    if at != 0:
        record = record_at(at, RECORD)
        record.code, record.end = w.state, -1
        if w.state == WAIT_GE or w.state == WAIT_ANY:
            record.offset = w.wait_offset
            record.value = w.wait_value if w.state == WAIT_GE else w.wait_count
            record.seen = word_at(rank_at(e, w.rank).base + w.wait_offset)[0]
    switch(w.context, h.main_context)
    if at != 0:
        record_at(at, RECORD).end = h.now


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


class Hop(NamedTuple):
    """The way of a transfer that leaves a port now.

    Attributes:
        busy_ps: how long it occupies the port that it leaves.
        incoming_ps: how long it occupies the port that it enters, until it arrives.
        arrival: when it arrives.
    """

    busy_ps: int
    incoming_ps: int
    arrival: int


@inner
def record_hop(e: int, port: int, transfer: int, hop: Hop) -> None:
    """Record a transfer that leaves `port` now."""
    t = transfer_at(e, transfer)
    source = port // NUM_PORTS
    if rank_at(e, source).recorded == 0 and rank_at(e, t.dst_rank).recorded == 0:
        return
    at = new_record(e, HOP, t.warp, header(e).now)
    if at != 0:
        record = record_at(at, RECORD)
        record.code, record.end = t.kind, hop.arrival
        record.num_bytes, record.issued, record.offset = t.bytes, t.issued, t.offset
        record.value, record.seen = hop.busy_ps, hop.incoming_ps
        record.port, record.source, record.peer = port % NUM_PORTS, source, t.dst_rank
