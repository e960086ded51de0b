"""Where ranks meet whose GPUs do not address each other's memory: in a call of NCCL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comms.cuda.errors import explained
from comms.cuda.limits import within
from comms.cuda.memory import give_back
from comms.errors import EpbenchError
from comms.mpi.together import together

if TYPE_CHECKING:
    from comms.cuda.nccl import Communicators
    from comms.mpi.ranks import Ranks

_WORD_BYTES = 8


class HostsMeeting:
    """Lets ranks of all hosts meet in the order of a stream.

    By an all-gather of a word: it ends nowhere before it has begun everywhere.
    """

    def __init__(self, communicators: Communicators, ranks: Ranks, stream: int) -> None:
        """Allocate, and meet once: NCCL connects ranks at their first call; collective.

        Args:
            communicators: of the world.
            ranks: the world.
            stream: what ranks meet on.

        Raises:
            RuntimeFailure: NCCL or CUDA failed; in the same words on all ranks.
            TimeoutFailure: NCCL did not come to an end.
        """
        self._ranks = ranks
        self._stream = stream
        self._memory = 0
        self._communicator = communicators.of(None)
        what = f"NCCL's first meeting of rank {ranks.rank}"

        def meet() -> None:
            try:
                within(communicators.limit_s, what, self.put)
            except EpbenchError:
                # The call may go on for ever, or others' kernels wait for this one's.
                communicators.abort()
                raise
            communicators.wait(stream, what)

        try:
            together(ranks, self._allocate)
            together(ranks, meet)
        except Exception:
            self.close()
            raise

    def put(self) -> None:
        """Let what follows on the stream wait for all ranks.

        Raises:
            RuntimeFailure: NCCL failed.
        """
        with explained("NCCL's meeting of hosts"):
            self._communicator.allgather(
                self._memory, self._memory + _WORD_BYTES, _WORD_BYTES, self._stream
            )

    def close(self) -> None:
        """Free the memory; once is enough."""
        memory, self._memory = self._memory, 0
        if memory:
            from cupy.cuda import runtime

            give_back(lambda: runtime.free(memory))

    def _allocate(self) -> None:
        num_bytes = (1 + self._ranks.world_size) * _WORD_BYTES
        with explained("memory of a meeting cannot be had", num_bytes):
            from cupy.cuda import runtime

            self._memory = runtime.malloc(num_bytes)
