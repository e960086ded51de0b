"""The instruction set: what a kernel may do, once for all devices.

A kernel is a plain function `kernel(p)` of a named tuple of int64 and calls these functions as
`isa.name(...)`. Binding it to a device replaces this module by the device's. The functions here are
the specification; calling one is an error.

All values are int64. A kernel runs once per warp: `sm_id()` and `warp_id()` say which. Remote
memory is named (rank, offset in the symmetric window); local memory is an address. In `p` a field
named after a region is its offset, and with `_addr` appended its address on this rank. Flags are
8-byte words of the window.

Ordering: a release covers this warp's earlier writes, bulk copies among them, and its earlier
reads; those of the warps it has synchronised with by `block_sync` or `group_sync`; and what all of
them have acquired. Releases are `store_release`, `fence_release` for the relaxed writes of words
that follow it, every put and every `put_signal`. A row or word becomes readable when it arrives,
not when it is issued, and two relaxed writes may arrive in either order. What this warp wrote to
its own rank it reads itself, bulk copies only after a release. Waits are acquires. Every wait ends:
by its condition, or by a report of what it waited for. The end of a launch is a release, but no
puts need have completed: for those there is `put_wait`.

Rows are what the model's data is made of and may be simulated by a prefix; `num_bytes` of a row
instruction is a multiple of the row stride. Bytes (`copy_bytes`, `put_bytes`) are counts and
indices, and always whole.
"""

from typing import NamedTuple, NoReturn


class TopkRow(NamedTuple):
    """A token's selections and what it takes to find their ranks.

    Attributes:
        idx_addr: local address of int32 `topk_idx[num_topk]`, -1 for no expert.
        weights_addr: local address of float32 `topk_weights[num_topk]`.
        num_topk: selections of a token.
        experts_per_rank: expert e is owned by rank e // experts_per_rank.
        world_size: ranks.
    """

    idx_addr: int
    weights_addr: int
    num_topk: int
    experts_per_rank: int
    world_size: int


class RowList(NamedTuple):
    """Rows of equal size, at equal regions of some ranks.

    Attributes:
        num_rows: rows.
        ranks_addr: local address of int32 `ranks[num_rows]`, 0 where all are on this rank.
        rows_addr: local address of int32 `rows[num_rows]`, row indices.
        base: offset of row 0 in the window.
        row_bytes: row stride, a multiple of 16.
    """

    num_rows: int
    ranks_addr: int
    rows_addr: int
    base: int
    row_bytes: int


class Matrix(NamedTuple):
    """An int32 matrix in local memory.

    Attributes:
        addr: local address of its first row.
        num_columns: columns.
        row_bytes: bytes from one row to the next.
    """

    addr: int
    num_columns: int
    row_bytes: int


class ExpertLists(NamedTuple):
    """Where a token's selections go: addresses of int32 experts and rows, float32 weights."""

    experts_addr: int
    rows_addr: int
    weights_addr: int


class Part(NamedTuple):
    """Part `number` of `num_parts` equal parts of the columns of rows."""

    number: int
    num_parts: int


class Selected(NamedTuple):
    """Where a list of selections goes: local addresses.

    Attributes:
        entries_addr: of 16 bytes for each: int32 `token * num_topk + k`, float32 weight, int32
            expert local to its rank, int32 number of earlier entries of that expert.
        counts_addr: of int32 `counts[experts_per_rank]`.
    """

    entries_addr: int
    counts_addr: int


#: Most rows of one `put_rows`: segments of a work request.
MOST_SEGMENTS = 16

#: Named barriers of a block; `group_sync` takes 1 to NUM_GROUPS - 1, `block_sync` is barrier 0.
NUM_GROUPS = 16


class Target(NamedTuple):
    """A place in a rank's window."""

    rank: int
    offset: int


def _unbound() -> NoReturn:
    raise RuntimeError("an instruction runs only in a kernel that is bound to a device")


def sm_id() -> int:
    """Return the index of this block among the launch's blocks, one on each SM."""
    _unbound()


def warp_id() -> int:
    """Return the index of this warp in its block."""
    _unbound()


def load(offset: int) -> int:
    """Load the word at `offset` of the own window, relaxed."""
    _unbound()


def load_acquire(offset: int) -> int:
    """Load the word at `offset` of the own window; later reads see what its writer released."""
    _unbound()


def store(rank: int, offset: int, value: int) -> None:
    """Store a word at (rank, offset), relaxed."""
    _unbound()


def store_release(rank: int, offset: int, value: int) -> None:
    """Store a word at (rank, offset) after every write that this warp's release covers."""
    _unbound()


def add(rank: int, offset: int, value: int) -> None:
    """Add to the word at (rank, offset), relaxed and atomic."""
    _unbound()


def fetch_add(rank: int, offset: int, value: int) -> int:
    """Add to the word at (rank, offset), relaxed and atomic; return what it was."""
    _unbound()


def fence_release() -> None:
    """Make the relaxed `store` and `add` that follow release: one fence for many flags."""
    _unbound()


def wait_ge(offset: int, value: int, line: int = 0) -> int:
    """Wait until the word at `offset` of the own window is at least `value`, then acquire.

    Args:
        offset: the flag.
        value: what to wait for.
        line: source line for reports; binding fills it in.

    Returns:
        The word that ended the wait.
    """
    _unbound()


def wait_any(
    offset: int, stride: int, values_addr: int, count: int, first: int, line: int = 0
) -> int:
    """Wait until one of `count` words is at least its value, acquire, and return its index.

    Of several that are, the next from index `first` on, round and round: who serves many begins
    each time after the last.

    Args:
        offset: first word, in the own window.
        stride: bytes from one word to the next.
        values_addr: local address of `count` int64 values, one for each word.
        count: number of words.
        first: which to prefer, 0 to `count`.
        line: source line for reports; binding fills it in.
    """
    _unbound()


def wait_all(offset: int, stride: int, count: int, value: int, line: int = 0) -> None:
    """Wait until every one of `count` words of the own window is at least `value`, then acquire.

    Args:
        offset: first word.
        stride: bytes from one word to the next.
        count: number of words; none is no wait.
        value: what to wait for.
        line: source line for reports; binding fills it in.
    """
    _unbound()


def min_words(offset: int, stride: int, count: int) -> int:
    """Return the least of `count` words of the own window, all loaded as by `load_acquire`.

    Args:
        offset: first word.
        stride: bytes from one word to the next.
        count: number of words, at least 1.
    """
    _unbound()


def warp_sync() -> None:
    """Order the memory accesses of this warp's lanes."""
    _unbound()


def block_sync(line: int = 0) -> None:
    """Wait for every warp of the block; its releases then cover theirs.

    A device may complete bulk copies here, or leave that to the release that covers them.
    """
    _unbound()


def group_sync(group: int, num_warps: int, line: int = 0) -> None:
    """Wait for the other warps of a group; its releases then cover theirs, as in `block_sync`.

    Args:
        group: which of the block's groups, 1 to NUM_GROUPS - 1; a warp stays in one for a launch.
        num_warps: warps of the group.
        line: source line for reports; binding fills it in.
    """
    _unbound()


def copy_row(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    """Copy local rows to (rank, offset) on this node by loads and stores of the whole warp.

    The source may be changed when the call returns. `num_bytes` is a multiple of 16.
    """
    _unbound()


def copy_row_bulk(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    """Copy local rows to (rank, offset) on this node by bulk asynchronous copies.

    The source must stay as it is until a release that covers the copy has returned, or the launch
    has ended.
    """
    _unbound()


def copy_bytes(rank: int, offset: int, src_addr: int, num_bytes: int) -> None:
    """Copy local bytes, a multiple of 4, to (rank, offset) on this node."""
    _unbound()


def copy_topk(rank: int, idx_offset: int, weights_offset: int, topk: TopkRow) -> None:
    """Copy a token's expert ids, made local to `rank`, and its weights to a rank on this node.

    An expert that `rank` does not own becomes -1 with weight 0.
    """
    _unbound()


def localize_topk(rank: int, idx_addr: int, weights_addr: int, topk: TopkRow) -> None:
    """Write what `copy_topk` would send to local memory, to be put over the network."""
    _unbound()


def reduce_rows(out_addr: int, rows: RowList) -> None:
    """Add BF16 rows in FP32 and write the sum, rounded once to BF16, to the own memory.

    The first row is the start and the others are added in order; no row gives +0.

    Args:
        out_addr: local address, in the window.
        rows: the rows, on ranks of this node.
    """
    _unbound()


def reduce_rows_weighted(out_addr: int, rows: RowList, weights_addr: int) -> None:
    """Add BF16 rows in FP32, each times its weight by `fma`, in order; write the sum as BF16.

    Args:
        out_addr: local address, in the window.
        rows: the rows, on ranks of this node; the first is multiplied, the others are added by
            `fma`.
        weights_addr: local address of float32 `weights[num_rows]`.
    """
    _unbound()


def reduce_columns_weighted(out_addr: int, rows: RowList, weights_addr: int, part: Part) -> None:
    """Do a part of `reduce_rows_weighted`, so that several warps share a row's columns.

    All parts together write what one `reduce_rows_weighted` does.

    Args:
        out_addr: local address of the whole row, in the window.
        rows: the whole rows, on ranks of this node.
        weights_addr: local address of float32 `weights[num_rows]`.
        part: the columns that this warp reads and writes.
    """
    _unbound()


def put_row(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    """Write local rows to (rank, offset) on another node, asynchronously.

    Posting is a release: the NIC reads what it covers. The source must stay as it is until the
    write has completed: until `put_wait` has returned, or something has been seen that happened
    after a later signal of the channel.
    """
    _unbound()


def put_rows(rank: int, offset: int, rows: RowList, channel: int) -> None:
    """Write listed rows of the own rank to consecutive places on another node, by one request.

    One work request with a segment for each row is posted; rows of other channels may leave between
    them. Otherwise as `put_row`.

    Args:
        rank: destination.
        offset: where the first row goes.
        rows: at most MOST_SEGMENTS rows, `ranks_addr` 0.
        channel: which channel.
    """
    _unbound()


def put_bytes(rank: int, offset: int, src_addr: int, num_bytes: int, channel: int) -> None:
    """Write local bytes to (rank, offset) on another node, asynchronously."""
    _unbound()


def put_signal(rank: int, offset: int, value: int, channel: int) -> None:
    """Add `value` to a flag on another node after this channel's earlier puts to that rank.

    A release, and atomic. Puts on other channels may arrive later.
    """
    _unbound()


def count_ranks(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    """Set int32 `counts[world_size]` to the tokens, from `topk` on, that go to each rank."""
    _unbound()


def rank_mask(topk: TopkRow, first_rank: int, num_ranks: int) -> int:
    """Return which of at most 62 consecutive ranks a token goes to: bit i for `first_rank + i`."""
    _unbound()


def select_rank(topk: TopkRow, num_tokens: int, rank: int, selected: Selected) -> int:
    """List the selections that one rank owns, of the tokens from `topk` on, in their order.

    Sets an entry for each, and counts them by the rank's experts.

    Returns:
        Number of entries.
    """
    _unbound()


def count_experts(topk: TopkRow, num_tokens: int, counts_addr: int) -> None:
    """Count each expert's selections by the tokens from `topk` on.

    Sets int32 `counts[world_size * experts_per_rank]`.
    """
    _unbound()


def sum_rows(matrix: Matrix, num_rows: int, initial_addr: int, sums_addr: int) -> None:
    """Set int32 `sums[num_columns]` to the sum of a matrix's first rows.

    Args:
        matrix: int32 matrix in local memory.
        num_rows: rows to add.
        initial_addr: local address of int32 `initial[num_columns]` to start from, 0 for zeros.
        sums_addr: local address of the result.
    """
    _unbound()


def route(topk: TopkRow, cursor_addr: int, ranks_addr: int, rows_addr: int) -> int:
    """Find the distinct ranks of a token and take its next row at each.

    Writes the ranks in ascending order to int32 `ranks`, and to int32 `rows` what int32
    `cursor[rank]` was before one was added to it.

    Returns:
        Number of distinct ranks.
    """
    _unbound()


def route_experts(topk: TopkRow, cursor_addr: int, lists: ExpertLists) -> int:
    """Take a token's next row at each of its experts.

    Writes, for the selections that are not -1, in their order: the experts, what int32
    `cursor[expert]` was before one was added to it, and the weights.

    Returns:
        Number of such selections.
    """
    _unbound()


def scan(counts_addr: int, num_counts: int, begins_addr: int) -> None:
    """Set int32 `begins[num_counts + 1]` to the sums of the counts before each, and of all."""
    _unbound()


def scan_words(offset: int, num_words: int, begins_addr: int) -> None:
    """Scan the low halves of words of the own window, which hold counts.

    Sets int32 `begins[num_words + 1]` to the sums of the counts before each, and of all.
    """
    _unbound()


def pause(nanoseconds: int) -> None:
    """Let at least this much time pass."""
    _unbound()


def put_wait(channel: int) -> None:
    """Wait until all puts of this rank on `channel` have completed: sources may be changed."""
    _unbound()


def put_row_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    """Write rows from the window of `via`, a rank of this node, to another node by its NIC.

    For models of libraries whose host threads drive the NICs; kernels for GPUs use `put_row`. What
    a host does is no release of this warp: a `fence_release` must precede it.
    """
    _unbound()


def put_bytes_via(via: int, src_offset: int, target: Target, num_bytes: int, channel: int) -> None:
    """Write bytes as `put_row_via` writes rows."""
    _unbound()


def put_signal_via(via: int, target: Target, value: int, channel: int) -> None:
    """Add `value` to a flag of another node after earlier puts of (`via`, `channel`) there.

    No release, as `put_row_via`.
    """
    _unbound()


def load_i32(addr: int) -> int:
    """Load an int32 of local memory."""
    _unbound()


def store_i32(addr: int, value: int) -> None:
    """Store an int32 in local memory; this warp's lanes see it, others after a synchronisation."""
    _unbound()


def load_i64(addr: int) -> int:
    """Load an int64 of local memory."""
    _unbound()


def store_i64(addr: int, value: int) -> None:
    """Store an int64 in local memory that only this warp uses."""
    _unbound()


def mark(stage: int) -> None:
    """Name the stage that this warp is in."""
    _unbound()
