"""`mpi`: the baseline where MPI carries the data, a framework's pack and unpack around `Alltoallv`.

The kernels before and after are those of `kernels.packing`, on all SMs; the exchange is the
library's, on the ranks' host threads. `padded` exchanges by `MPI_Alltoall`, `allgather` by
`MPI_Allgather` and, in combine, `MPI_Alltoall` and a sum at the source: `MPI_Reduce_scatter` would
round on the way, in an order of its own.

On `cuda` MPI is given the GPU's memory, which it must know (CUDA-aware). It knows no streams: the
host waits for the kernels before each call, and that is part of the time.
"""

from comms.collectives import Wanted
from kernels.packing import Variant
from kernels.packing.hosted import hosted
from kernels.protocol import Protocol
from kernels.shape import Shape


def _library(shape: Shape) -> Wanted:
    return Wanted("mpi")


def _variant(variant: Variant, summary: str) -> Protocol:
    return hosted("mpi", variant, summary, devices=("cpu", "cuda"), library=_library, queues=False)


PROTOCOLS = (
    _variant("dedup", "MPI_Alltoallv, a row per (token, rank): the strongest baseline"),
    _variant("selection", "MPI_Alltoallv, a row per (token, expert): what frameworks do"),
    _variant("padded", "MPI_Alltoall, each message padded to the longest of the world"),
    _variant(
        "allgather", "MPI_Allgather of all tokens; MPI_Alltoall back, and a sum at the source"
    ),
)
