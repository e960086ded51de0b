"""What the host asks of a library between the kernels here: counts, then rows, ids and weights.

Every rank calls these in the same order. Counts go from buffer to buffer; then the host reads them,
for it names every message's size, and what kernels need of them it writes to the tables. How rows
are split is kept for the way back and for cached forms.
"""

import numpy as np
import numpy.typing as npt

from comms.collectives import Rows, RowSplits, starts
from kernels.protocol import HostCall

Int64 = npt.NDArray[np.int64]


def counts(host: HostCall) -> None:
    """Tell every rank what it will get, and let the host have a copy of it.

    Reads the first row of `block_totals`, this rank's rows by column. Writes `recv_counts` by
    (source, column of the own).
    """
    world = host.shape.world_size
    width = host.number("counts_per_rank")
    totals = host.view("block_totals", np.int32)[: world * width]
    target = host.view("recv_counts", np.int32)[: world * width]
    row = Rows(totals.view(np.uint8), target.view(np.uint8), 4 * width)
    host.library.exchange_equal([row], 1)
    host.library.fetch([totals, target])


def sizes(host: HostCall) -> None:
    """Wait for the counts and work out where everything goes.

    Writes, where a rank has several columns, `pair_begins`: where the rows of each (source, column
    of the own) begin when sorted by (column, source).
    """
    world = host.shape.world_size
    width = host.number("counts_per_rank")
    sent, received = (each.reshape(world, width) for each in host.library.fetched())
    if host.number("by_expert"):
        _write(host, "pair_begins", starts(received.T.ravel()).reshape(width, world).T.ravel())
    to_all, from_all = (each.sum(axis=1, dtype=np.int64) for each in (sent, received))
    host.kept["splits"] = RowSplits(starts(to_all), to_all, starts(from_all), from_all)


def counts_of_all(host: HostCall) -> None:
    """Tell every rank what all ranks send, and let the host have a copy of it.

    Writes `all_counts` by (source, rank).
    """
    world = host.shape.world_size
    totals = host.view("block_totals", np.uint8)[: 4 * world]
    all_counts = host.view("all_counts", np.int32)[: world * world]
    host.library.gather([Rows(totals, all_counts.view(np.uint8), 4 * world)], 1)
    host.library.fetch([all_counts])


def equal_sizes(host: HostCall) -> None:
    """Wait for the counts and let all messages be as long as the longest of the world.

    Writes `recv_counts` and `pair_begins` by source, and where equal splits begin to `send_begins`
    and `recv_begins`.
    """
    world = host.shape.world_size
    (found,) = host.library.fetched()
    sent = found.reshape(world, world)
    received = sent[:, host.comm.rank].astype(np.int64)
    _write(host, "recv_counts", received)
    _write(host, "pair_begins", starts(received))
    most = int(sent.max())
    for name in ("send_begins", "recv_begins"):
        _write(host, name, np.arange(world + 1) * most)
    equal = np.full(world, most, np.int64)
    host.kept["splits"] = RowSplits(starts(equal), equal, starts(equal), equal)


def rows(host: HostCall) -> None:
    """Exchange the packed rows, their ids and their weights."""
    host.library.exchange(_parts(host), host.kept["splits"])


def rows_back(host: HostCall) -> None:
    """Exchange the rows that go back."""
    host.library.exchange([_part_back(host)], host.kept["splits"].back())


def equal_rows(host: HostCall) -> None:
    """Exchange equal splits of packed rows, their ids and their weights."""
    host.library.exchange_equal(_parts(host), _split_rows(host))


def equal_rows_back(host: HostCall) -> None:
    """Exchange the equal splits of rows that go back."""
    host.library.exchange_equal([_part_back(host)], _split_rows(host))


def gather(host: HostCall) -> None:
    """Gather every rank's rows, ids and weights on all ranks."""
    host.library.gather(_parts(host), host.shape.num_tokens)


def clear_back(host: HostCall) -> None:
    """Let every rank contribute zeros to the tokens that it has no row of."""
    host.library.clear(host.view("from_y", np.uint8))


def sum_back(host: HostCall) -> None:
    """Let the library add the rows that go back, and give every rank the sums of its tokens."""
    part = Rows(
        host.view("from_y", np.uint8),
        host.view("out", np.uint8),
        host.shape.combine_row.stride_bytes,
    )
    host.library.sum_scatter(part, host.shape.num_tokens)


def _split_rows(host: HostCall) -> int:
    """Return the rows of each equal split."""
    if host.number("to_all"):
        return host.shape.num_tokens
    return int(host.kept["splits"].send_counts[0])


def _write(host: HostCall, name: str, values: Int64) -> None:
    host.library.write(host.view(name, np.int32), values.astype(np.int32))


def _parts(host: HostCall) -> list[Rows]:
    """Return what dispatch moves."""
    ids_bytes = host.number("ids_bytes")
    sizes = {
        ("send_x", "into_x"): host.shape.dispatch_row.stride_bytes,
        ("send_idx", "into_idx"): ids_bytes,
        ("send_topk_weights", "into_weights"): ids_bytes,
    }
    return [
        Rows(host.view(source, np.uint8), host.view(target, np.uint8), row_bytes)
        for (source, target), row_bytes in sizes.items()
    ]


def _part_back(host: HostCall) -> Rows:
    source, target = host.view("from_y", np.uint8), host.view("into_y", np.uint8)
    return Rows(source, target, host.shape.combine_row.stride_bytes)
