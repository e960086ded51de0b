"""`mpi`: the baseline where MPI carries the data, a framework's pack and unpack around `Alltoallv`.

The kernels before and after are those of `kernels.packing`, on all SMs; the exchange is the
library's, on the ranks' host threads.
"""

from kernels import packing
from kernels.mpi.exchange import alltoallv, alltoallv_back, counts
from kernels.protocol import Form, HostLaunch, KernelLaunch, Op, Protocol

_COUNTS = HostLaunch("counts", counts)
_ALLTOALLV = HostLaunch("alltoallv", alltoallv)
_ALLTOALLV_BACK = HostLaunch("alltoallv_back", alltoallv_back)


def _launches(op: Op, form: Form, *, by_expert: bool) -> tuple[KernelLaunch | HostLaunch, ...]:
    if op == "combine":
        return (*((packing.PACK_BACK,) if by_expert else ()), _ALLTOALLV_BACK, packing.REDUCE)
    fresh = (packing.LAYOUT, packing.PACK, _COUNTS)
    return (
        *(fresh if form == "fresh" else (packing.PACK,)),
        _ALLTOALLV,
        *((packing.UNPACK,) if by_expert else ()),
    )


DEDUP = Protocol(
    kernel="mpi",
    variant="dedup",
    summary="MPI_Alltoallv, a row per (token, rank): the strongest baseline",
    regions=lambda shape: packing.regions(shape, by_expert=False),
    launches=lambda op, form: _launches(op, form, by_expert=False),
    settings=lambda shape: packing.settings(shape, by_expert=False),
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
SELECTION = Protocol(
    kernel="mpi",
    variant="selection",
    summary="MPI_Alltoallv, a row per (token, expert): what frameworks do",
    regions=lambda shape: packing.regions(shape, by_expert=True),
    launches=lambda op, form: _launches(op, form, by_expert=True),
    settings=lambda shape: packing.settings(shape, by_expert=True),
    granularity="selection",
    is_baseline=True,
    devices=("cpu",),
    impl="library",
)
PROTOCOLS = (DEDUP, SELECTION)
