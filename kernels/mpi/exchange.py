"""What MPI does for the `mpi` baseline: exchange counts, then rows, ids and weights.

Every rank calls these in the same order; each ends when this rank's part is done, as MPI says.
"""

import numpy as np
import numpy.typing as npt

from kernels.protocol import HostCall

Int32 = npt.NDArray[np.int32]


def counts(host: HostCall) -> None:
    """Tell every rank what it will get; work out where everything goes.

    Reads `begins`, where the packed rows of each column begin. Writes `send_begins` and
    `recv_begins` by rank, `recv_counts` by (source, column of the own) and `pair_begins`, where the
    rows of each such pair begin when sorted by (column, source).
    """
    world = host.shape.world_size
    recv_counts = host.view("recv_counts", np.int32).reshape(world, -1)
    width = recv_counts.shape[1]
    begins = host.view("begins", np.int32)[: world * width + 1]
    sent = np.ascontiguousarray(np.diff(begins))
    received = np.empty_like(recv_counts)
    host.comm.Alltoall(sent, received)
    recv_counts[:] = received
    host.view("send_begins", np.int32)[:] = begins[::width]
    host.view("recv_begins", np.int32)[0] = 0
    np.cumsum(received.sum(axis=1), out=host.view("recv_begins", np.int32)[1:])
    by_column = np.cumsum(received.T.ravel()) - received.T.ravel()
    host.view("pair_begins", np.int32)[:] = by_column.reshape(width, world).T.ravel()


def alltoallv(host: HostCall) -> None:
    """Exchange the packed rows, their ids and their weights."""
    to_begins, from_begins = _begins(host)
    ids_bytes = host.settings["ids_bytes"]
    assert isinstance(ids_bytes, int)
    parts = (
        ("send_x", "into_x", host.shape.dispatch_row.stride_bytes),
        ("send_idx", "into_idx", ids_bytes),
        ("send_topk_weights", "into_weights", ids_bytes),
    )
    for source, target, row_bytes in parts:
        _exchange(host, source, target, row_bytes, to_begins, from_begins)


def alltoallv_back(host: HostCall) -> None:
    """Exchange the rows that go back."""
    to_begins, from_begins = _begins(host)
    row_bytes = host.shape.combine_row.stride_bytes
    _exchange(host, "from_y", "into_y", row_bytes, from_begins, to_begins)


def _begins(host: HostCall) -> tuple[Int32, Int32]:
    return host.view("send_begins", np.int32), host.view("recv_begins", np.int32)


def _exchange(
    host: HostCall,
    source: str,
    target: str,
    row_bytes: int,
    to_begins: Int32,
    from_begins: Int32,
) -> None:
    """Send rows of equal size by their places in two buffers."""
    from mpi4py import MPI

    # MPI's counts have 32 bits: they count rows, not bytes.
    row = MPI.BYTE.Create_contiguous(row_bytes).Commit()
    try:
        host.comm.Alltoallv(
            [host.view(source, np.uint8), (np.diff(to_begins), to_begins[:-1]), row],
            [host.view(target, np.uint8), (np.diff(from_begins), from_begins[:-1]), row],
        )
    finally:
        row.Free()
