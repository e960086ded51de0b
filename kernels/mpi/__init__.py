"""`mpi`: the baseline where MPI carries the data, a framework's pack and unpack around `Alltoallv`.

The kernels before and after are those of `kernels.packing`, on all SMs; the exchange is the
library's, on the ranks' host threads. `padded` exchanges by `MPI_Alltoall`, `allgather` by
`MPI_Allgather` and, in combine, `MPI_Alltoall` and a sum at the source: `MPI_Reduce_scatter` would
round on the way, in an order of its own.
"""

from functools import partial

from kernels import packing
from kernels.mpi import exchange
from kernels.packing import Library
from kernels.protocol import HostLaunch, Protocol

_ALLTOALLV = Library(
    HostLaunch("alltoallv", exchange.alltoallv),
    HostLaunch("alltoallv_back", exchange.alltoallv_back),
    HostLaunch("counts", exchange.counts),
)
_ALLTOALL = Library(
    HostLaunch("alltoall", exchange.alltoall),
    HostLaunch("alltoall_back", exchange.alltoall_back),
    HostLaunch("counts", exchange.counts_of_all),
)
_ALLGATHER = Library(
    HostLaunch("allgather", exchange.allgather),
    HostLaunch("alltoall_back", exchange.alltoall_back),
)

DEDUP = Protocol(
    kernel="mpi",
    variant="dedup",
    summary="MPI_Alltoallv, a row per (token, rank): the strongest baseline",
    regions=partial(packing.regions, variant="dedup"),
    launches=partial(packing.launches, variant="dedup", library=_ALLTOALLV),
    settings=partial(packing.settings, variant="dedup"),
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
SELECTION = Protocol(
    kernel="mpi",
    variant="selection",
    summary="MPI_Alltoallv, a row per (token, expert): what frameworks do",
    regions=partial(packing.regions, variant="selection"),
    launches=partial(packing.launches, variant="selection", library=_ALLTOALLV),
    settings=partial(packing.settings, variant="selection"),
    granularity="selection",
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
PADDED = Protocol(
    kernel="mpi",
    variant="padded",
    summary="MPI_Alltoall, each message padded to the longest of the world",
    regions=partial(packing.regions, variant="padded"),
    launches=partial(packing.launches, variant="padded", library=_ALLTOALL),
    settings=partial(packing.settings, variant="padded"),
    splits="padded",
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
ALLGATHER = Protocol(
    kernel="mpi",
    variant="allgather",
    summary="MPI_Allgather of all tokens; MPI_Alltoall back, and a sum at the source",
    regions=partial(packing.regions, variant="allgather"),
    launches=partial(packing.launches, variant="allgather", library=_ALLGATHER),
    refuses=packing.refuses,
    settings=partial(packing.settings, variant="allgather"),
    splits="gathered",
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
PROTOCOLS = (DEDUP, SELECTION, PADDED, ALLGATHER)
