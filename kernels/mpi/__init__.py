"""`mpi`: the baseline where MPI carries the data, a framework's pack and unpack around `Alltoallv`.

The kernels before and after are those of `kernels.packing`, on all SMs; the exchange is the
library's, on the ranks' host threads. `padded` exchanges by `MPI_Alltoall`, `allgather` by
`MPI_Allgather` and, in combine, `MPI_Alltoall` and a sum at the source: `MPI_Reduce_scatter` would
round on the way, in an order of its own.
"""

from dataclasses import replace

from kernels import packing
from kernels.mpi import exchange
from kernels.packing import Library, Variant
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


def _variant(variant: Variant, summary: str, library: Library) -> Protocol:
    protocol = packing.baseline("mpi", variant, summary, library)
    return replace(protocol, devices=("cpu",), impl="library")


PROTOCOLS = (
    _variant("dedup", "MPI_Alltoallv, a row per (token, rank): the strongest baseline", _ALLTOALLV),
    _variant(
        "selection", "MPI_Alltoallv, a row per (token, expert): what frameworks do", _ALLTOALLV
    ),
    _variant("padded", "MPI_Alltoall, each message padded to the longest of the world", _ALLTOALL),
    _variant(
        "allgather",
        "MPI_Allgather of all tokens; MPI_Alltoall back, and a sum at the source",
        _ALLGATHER,
    ),
)
