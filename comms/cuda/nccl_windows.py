"""Windows of ranks that NCCL has allocated and maps into each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.cuda.errors import explained
from comms.cuda.limits import within
from comms.cuda.memory import CardWindows, give_back, require
from comms.cuda.nccl import Communicator, Communicators
from comms.cuda.nccl_library import nccl_version
from comms.errors import EpbenchError, RuntimeFailure
from comms.memory import Layout
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.mpi.ranks import Ranks

#: First NCCL that tells the host where a peer's window is.
_LEAST_VERSION = 22900
#: NCCL allocates whole pages of the GPU.
_PAGE_BYTES = 2 * 1024 * 1024


class NcclWindows(CardWindows):
    """One allocation a rank, a symmetric window of a communicator.

    Ranks of other nodes are reachable where one NVLink domain holds them.
    """

    def __init__(
        self,
        layout: Layout,
        ranks: Ranks,
        communicators: Communicators | None = None,
        *,
        zero: bool = False,
    ) -> None:
        """Allocate, map and zero; collective.

        Args:
            layout: regions, the same on every rank.
            ranks: the world.
            communicators: of the same ranks, whose memory this becomes; its own by default.
            zero: whether copy engines shall serve this memory: it is registered with one
                communicator only.

        Raises:
            UsageError: NCCL cannot make windows as it is called.
            RuntimeFailure: there is not enough GPU memory, or some rank cannot address another's;
                in the same words on all ranks, and nothing stays allocated.
        """
        super().__init__(layout, (ranks.rank,))
        self._world = ranks
        self._own = 0
        self._communicator: Communicator | None = None
        self._is_owner = communicators is None
        self._num_bytes = -(-layout.window_bytes // _PAGE_BYTES) * _PAGE_BYTES
        self._nccl = Communicators(ranks) if communicators is None else communicators
        try:
            together(ranks, self._begin)
            self._check_sizes()
            require(self._num_bytes, ranks)
            communicator = self._nccl.of("zero" if zero else None)
            together(ranks, self._allocate)
            found = together(ranks, lambda: self._register(communicator))
            self._check_reach(found)
        except EpbenchError:
            self.close()
            raise

    def _check_sizes(self) -> None:
        if self._nccl.version < _LEAST_VERSION:
            raise RuntimeFailure(
                f"NCCL {nccl_version(self._nccl.version)} does not tell where windows are, "
                f"{nccl_version(_LEAST_VERSION)} does: install a newer one, or use --memory ipc"
            )
        sizes = together(self._world, lambda: self._num_bytes)
        if len(set(sizes)) > 1:
            least, most = sizes.index(min(sizes)), sizes.index(max(sizes))
            raise RuntimeFailure(
                f"windows of NCCL are of one size, but rank {least} wants {min(sizes)} bytes and "
                f"rank {most} {max(sizes)}: give all ranks the same layout"
            )

    def _allocate(self) -> None:
        with explained(f"the window of rank {self._world.rank} cannot be made", self._num_bytes):
            self._own = self._nccl.library.allocate(self._num_bytes)
            self._set(self._own, 0, self._num_bytes, self._stream)

    def _register(self, communicator: Communicator) -> tuple[int, list[int] | None]:
        rank = self._world.rank
        try:
            with explained(f"the window of rank {rank} cannot be registered"):
                bases = within(
                    self._nccl.limit_s,
                    f"the registration of rank {rank}'s window",
                    lambda: communicator.register(self._own, self._num_bytes),
                )
        except EpbenchError:
            # The call may go on with memory that must not be freed then, and others' never end.
            self._nccl.abort()
            raise
        if bases is not None:
            self._communicator = communicator
            self._bases = bases
        return self._world.host, bases

    def _check_reach(self, found: list[tuple[int, list[int] | None]]) -> None:
        for rank, (host, bases) in enumerate(found):
            if bases is None:
                raise RuntimeFailure(
                    f"NCCL makes no symmetric window on rank {rank}: the GPUs must map each "
                    "other's memory, and NCCL_CUMEM_ENABLE and NCCL_WIN_ENABLE must not be 0; or "
                    "use --memory ipc"
                )
            for peer, base in enumerate(bases):
                if not base and found[peer][0] == host:
                    raise RuntimeFailure(
                        f"NCCL does not let rank {rank} address the window of rank {peer} on the "
                        "same node: their GPUs are not linked by NVLink or PCIe peer access "
                        "(nvidia-smi topo -m), or NCCL_P2P_DISABLE or NCCL_P2P_LEVEL forbids it"
                    )

    def _free(self) -> None:
        # No rank is inside a kernel that uses a mapping once all are here.
        if any(together(self._world, lambda: self._nccl.is_aborted)):
            # Windows went with the communicator, on some ranks; memory goes with the process.
            return
        together(self._world, self._unregister)
        if self._own:
            give_back(lambda: self._nccl.library.free(self._own))
        if self._is_owner:
            self._nccl.close()

    def _unregister(self) -> None:
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            give_back(lambda: communicator.unregister(self._own))
