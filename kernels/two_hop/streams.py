"""How a warp serves several streams: the chunk that is next of each, and whichever may go on.

A warp has streams w, w + W, ... of W such warps. Of each it keeps the value that the stream's word
must reach before its next chunk may be served, and that chunk's place in this epoch.
"""

from typing import NamedTuple

from kernels import isa

#: More rows than any stream ever has: the value of one that is done.
NEVER = 1 << 62


class Served(NamedTuple):
    """The streams of a warp.

    Attributes:
        first: the first stream.
        stride: from one to the next.
        num_streams: streams.
        wanted: local address of an int64 for each, what its word must reach.
        places: local address of an int32 for each, the place of its next chunk.
        expected: local address of int32 rows in this epoch, by stream.
        begun: local address of int64 rows of all epochs before, chunks rounded up, by stream.
        ahead: what the word must be ahead of a chunk's first row of all epochs.
        chunk_rows: rows of a chunk.
    """

    first: int
    stride: int
    num_streams: int
    wanted: int
    places: int
    expected: int
    begun: int
    ahead: int
    chunk_rows: int


class Chunk(NamedTuple):
    """A chunk of a stream.

    Attributes:
        which: which of the warp's streams.
        stream: which of all.
        place: of the first row, in this epoch.
        at: of the first row, in all epochs.
        num_rows: rows.
        is_last: 1 for the stream's last of this epoch, else 0.
    """

    which: int
    stream: int
    place: int
    at: int
    num_rows: int
    is_last: int


def num_served(total: int, worker: int, num_workers: int) -> int:
    """Return how many of `total` streams a warp serves."""
    return max((total - worker + num_workers - 1) // num_workers, 0)


def open_streams(served: Served) -> int:
    """Begin an epoch; return the number of streams that have rows in it."""
    num_open = 0
    for index in range(served.num_streams):
        stream = served.first + index * served.stride
        value = NEVER
        if isa.load_i32(served.expected + 4 * stream) > 0:
            value = isa.load_i64(served.begun + 8 * stream) + served.ahead
            num_open += 1
        isa.store_i64(served.wanted + 8 * index, value)
        isa.store_i32(served.places + 4 * index, 0)
    return num_open


def next_chunk(served: Served, words: int, turn: int) -> Chunk:
    """Wait until a chunk of any stream may be served, and go on to the chunk after it.

    Args:
        served: the warp's streams.
        words: offset of the word of stream 0 of all.
        turn: which of the warp's streams to look at first.
    """
    words += 8 * served.first
    index = isa.wait_any(words, 8 * served.stride, served.wanted, served.num_streams, turn)
    stream = served.first + index * served.stride
    at = isa.load_i64(served.wanted + 8 * index) - served.ahead
    place = isa.load_i32(served.places + 4 * index)
    total = isa.load_i32(served.expected + 4 * stream)
    num_rows = min(served.chunk_rows, total - place)
    end = at + served.chunk_rows
    is_last = 1
    if place + num_rows < total:
        is_last = 0
        isa.store_i32(served.places + 4 * index, place + num_rows)
        isa.store_i64(served.wanted + 8 * index, end + served.ahead)
    else:
        isa.store_i64(served.wanted + 8 * index, NEVER)
        isa.store_i64(served.begun + 8 * stream, end)
    return Chunk(index, stream, place, at, num_rows, is_last)
