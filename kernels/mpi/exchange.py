"""What MPI does for the `mpi` baseline: exchange counts, then rows, ids and weights.

Every rank calls these in the same order; each ends when this rank's part is done, as MPI says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kernels.protocol import HostCall

if TYPE_CHECKING:
    from mpi4py.MPI import Datatype

Int32 = npt.NDArray[np.int32]
Part = tuple[str, str, int]


def counts(host: HostCall) -> None:
    """Tell every rank what it will get; work out where everything goes.

    Reads `begins`, where the packed rows of each column begin. Writes `send_begins` and
    `recv_begins` by rank, `recv_counts` by (source, column of the own) and `pair_begins`, where the
    rows of each such pair begin when sorted by (column, source).
    """
    begins = _column_begins(host)
    recv_counts = _recv_counts(host)
    received = np.empty_like(recv_counts)
    host.comm.Alltoall(np.ascontiguousarray(np.diff(begins)), received)
    _write_received(host, received)
    to_begins, from_begins = _begins(host)
    to_begins[:] = begins[:: recv_counts.shape[1]]
    from_begins[0] = 0
    np.cumsum(received.sum(axis=1), out=from_begins[1:])


def counts_of_all(host: HostCall) -> None:
    """Tell every rank what all ranks send: `counts` for splits padded to the longest message.

    Reads and writes what `counts` does; all messages begin at equal splits.
    """
    world = host.shape.world_size
    sent = np.empty((world, world), np.int32)
    host.comm.Allgather(np.ascontiguousarray(np.diff(_column_begins(host))), sent)
    _write_received(host, np.ascontiguousarray(sent[:, [host.comm.rank]]))
    equal = np.arange(world + 1, dtype=np.int32) * sent.max()
    for begins in _begins(host):
        begins[:] = equal


def alltoallv(host: HostCall) -> None:
    """Exchange the packed rows, their ids and their weights."""
    to_begins, from_begins = _begins(host)
    for part in _parts(host):
        _exchange(host, part, to_begins, from_begins)


def alltoallv_back(host: HostCall) -> None:
    """Exchange the rows that go back."""
    to_begins, from_begins = _begins(host)
    _exchange(host, _part_back(host), from_begins, to_begins)


def alltoall(host: HostCall) -> None:
    """Exchange equal splits of packed rows, their ids and their weights."""
    for part in _parts(host):
        _exchange_equal(host, part)


def alltoall_back(host: HostCall) -> None:
    """Exchange the equal splits of rows that go back."""
    _exchange_equal(host, _part_back(host))


def allgather(host: HostCall) -> None:
    """Gather every rank's rows, ids and weights on all ranks."""
    num_tokens = host.shape.num_tokens
    for source, target, row_bytes in _parts(host):
        with _row(row_bytes) as row:
            host.comm.Allgather(
                [host.view(source, np.uint8), num_tokens, row],
                [host.view(target, np.uint8), num_tokens, row],
            )


def _column_begins(host: HostCall) -> Int32:
    num_columns = host.settings["num_columns"]
    assert isinstance(num_columns, int)
    return host.view("begins", np.int32)[: num_columns + 1]


def _recv_counts(host: HostCall) -> Int32:
    return host.view("recv_counts", np.int32).reshape(host.shape.world_size, -1)


def _write_received(host: HostCall, received: Int32) -> None:
    """Write `recv_counts` and `pair_begins` from counts by (source, column of the own)."""
    world, width = received.shape
    _recv_counts(host)[:] = received
    by_column = np.cumsum(received.T.ravel()) - received.T.ravel()
    host.view("pair_begins", np.int32)[: world * width] = by_column.reshape(width, world).T.ravel()


def _begins(host: HostCall) -> tuple[Int32, Int32]:
    size = host.shape.world_size + 1
    return host.view("send_begins", np.int32)[:size], host.view("recv_begins", np.int32)[:size]


def _parts(host: HostCall) -> tuple[Part, ...]:
    """Return what dispatch moves: source, target and bytes of a row."""
    ids_bytes = host.settings["ids_bytes"]
    assert isinstance(ids_bytes, int)
    return (
        ("send_x", "into_x", host.shape.dispatch_row.stride_bytes),
        ("send_idx", "into_idx", ids_bytes),
        ("send_topk_weights", "into_weights", ids_bytes),
    )


def _part_back(host: HostCall) -> Part:
    return ("from_y", "into_y", host.shape.combine_row.stride_bytes)


@contextmanager
def _row(row_bytes: int) -> Iterator["Datatype"]:
    """Give MPI's type of a row: its counts have 32 bits, so they count rows, not bytes."""
    from mpi4py import MPI

    row = MPI.BYTE.Create_contiguous(row_bytes).Commit()
    try:
        yield row
    finally:
        row.Free()


def _exchange(host: HostCall, part: Part, to_begins: Int32, from_begins: Int32) -> None:
    """Send rows of equal size by their places in two buffers."""
    source, target, row_bytes = part
    with _row(row_bytes) as row:
        host.comm.Alltoallv(
            [host.view(source, np.uint8), (np.diff(to_begins), to_begins[:-1]), row],
            [host.view(target, np.uint8), (np.diff(from_begins), from_begins[:-1]), row],
        )


def _exchange_equal(host: HostCall, part: Part) -> None:
    """Send as many rows of equal size to every rank."""
    source, target, row_bytes = part
    num_rows = int(_begins(host)[0][1])
    with _row(row_bytes) as row:
        host.comm.Alltoall(
            [host.view(source, np.uint8), num_rows, row],
            [host.view(target, np.uint8), num_rows, row],
        )
