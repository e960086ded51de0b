"""What a protocol is: kernels in order, the memory they need, and what they cannot do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from kernels.knobs import Knob
from kernels.shape import Shape

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from comms.collectives import Collectives, RowSplits, Wanted

Op = Literal["dispatch", "combine", "pair"]
Form = Literal["fresh", "cached"]
Granularity = Literal["rank", "selection"]
Route = Literal["one_hop", "rail", "pxn"]
Splits = Literal["exact", "padded", "gathered"]
Impl = Literal["numba", "cupy", "library"]

#: Largest of the whole numbers that `Protocol.whole_numbers` asks for, down to its negative.
MOST_WHOLE = 7
#: Regions that the harness owns: what a user passes in and gets back.
INPUTS = ("x", "topk_idx", "topk_weights", "y")
DISPATCH_OUTPUTS = ("recv_x", "recv_topk_idx", "recv_topk_weights", "recv_counts")
COMBINE_OUTPUTS = ("out",)


@dataclass(frozen=True, slots=True)
class CxxKernel:
    """A kernel of CUDA C++, which does what a launch's function of Python does.

    Attributes:
        file: defines `void function(const Params& p)` in namespace `ep`.
        function: its name.
    """

    file: Path
    function: str


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One launch of an operation.

    Attributes:
        name: phase that its time is recorded as.
        kernel: function of one `params`.
        params: named tuple class, all int64, filled by field name.
        num_warps: warps of each block, or what works them out from a shape.
        sms: `"comm"` for the reserved SMs, `"all"` for every SM of the GPU.
        cxx: what runs instead of `kernel` where the protocol is of CUDA C++.
    """

    name: str
    kernel: Callable[[Any], None]
    params: type[Any]
    num_warps: int | Callable[[Shape], int]
    sms: Literal["comm", "all"] = "comm"
    cxx: CxxKernel | None = None

    def warps(self, shape: Shape) -> int:
        """Return the warps of each block for a shape."""
        return self.num_warps if isinstance(self.num_warps, int) else self.num_warps(shape)


@dataclass(frozen=True, slots=True)
class HostCall:
    """What a host launch works with.

    Attributes:
        comm: the world's communicator.
        shape: sizes.
        settings: the protocol's own parameters.
        view: region of this rank's window as a flat array of a type, NumPy's or on `cuda` CuPy's,
            by its name or by the name of a setting that stands for it.
        library: what `Protocol.library` asks for.
        kept: how rows were split, by names of the protocol's own; one for all of a device's runs.
    """

    comm: "Intracomm"
    shape: Shape
    settings: Mapping[str, int | str]
    view: Callable[[str, npt.DTypeLike], Any]
    library: "Collectives"
    kept: dict[str, "RowSplits"]

    def number(self, name: str) -> int:
        """Return a setting that is a number."""
        value = self.settings[name]
        assert isinstance(value, int), f"{name=} is a region"
        return value


@dataclass(frozen=True, slots=True)
class HostLaunch:
    """A step that the host makes between kernels: a call of a library.

    Attributes:
        name: phase that its time is recorded as.
        call: what it does on each rank.
        waits: whether it waits for launches before it, of which some may not have been let go yet;
            else it only adds to what is queued.
    """

    name: str
    call: Callable[[HostCall], None]
    waits: bool = True


#: Launches of an operation, in order.
Launches = Callable[[Op, Form], tuple[KernelLaunch | HostLaunch, ...]]


def accepts_all(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    """Refuse nothing."""
    return None


def no_settings(shape: Shape) -> Mapping[str, int | str]:
    """Return no parameters beyond those that every kernel can ask for."""
    return {}


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to dispatch and combine.

    Attributes:
        kernel: name, for example `direct`.
        variant: name of the variant, for example `pull`.
        summary: one line for lists.
        regions: own flags and buffers, name to bytes, for a shape.
        launches: launches of `dispatch` or `combine`, in order.
        refuses: why an operation cannot run on a shape, or None.
        settings: the protocol's own parameters by field name; a string names the region that a
            parameter stands for.
        knobs: what it may be tuned by.
        granularity: what a received row stands for.
        splits: the rows that move: those routed (`exact`), as many between every two ranks as in
            the longest message of the world (`padded`), or the most tokens of any rank between
            every two (`gathered`).
        route: the way rows go between nodes where rails are separate; else they go in one
            hop.
        pulls: whether combine reads remote rows, and pays requests.
        hops: rounding steps of combine: 1, or 2 where nodes reduce first.
        is_baseline: whether it stands for a library.
        devices: what it runs on.
        impl: what it is made of: Python by Numba, CUDA C++ that CuPy loads, or a library.
        library: the library that its host launches call on a shape; None where it has none.
        whole_numbers: whether combine rounds as a library likes: then its rows are small whole
            numbers, whose sums are the same in any order.
    """

    kernel: str
    variant: str
    summary: str
    regions: Callable[[Shape], dict[str, int]]
    launches: Launches
    refuses: Callable[..., str | None] = accepts_all
    settings: Callable[[Shape], Mapping[str, int | str]] = no_settings
    knobs: tuple[Knob, ...] = ()
    granularity: Granularity = "rank"
    splits: Splits = "exact"
    route: Route = "one_hop"
    pulls: bool = False
    hops: Literal[1, 2] = 1
    is_baseline: bool = False
    devices: tuple[str, ...] = ("sim", "cpu", "cuda")
    impl: Impl = "numba"
    library: "Callable[[Shape], Wanted] | None" = None
    whole_numbers: bool = False
