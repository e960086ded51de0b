"""A compiled kernel on a GPU: loaded, told where windows are, and launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from comms.cuda.cubins import LANES, Cubin
from comms.cuda.errors import explained
from comms.cuda.machine import SYMBOL

if TYPE_CHECKING:
    from cupy.cuda import Stream

#: Status of the driver where a module has no such symbol.
_NOT_FOUND = 500


class LoadedKernel:
    """A kernel that this process's GPU can run.

    Attributes:
        cubin: its code.
    """

    def __init__(self, cubin: Cubin) -> None:
        """Load it on this thread's GPU.

        Raises:
            RuntimeFailure: the GPU does not take the code.
        """
        self.cubin = cubin
        with explained(f"kernel {cubin.name} cannot be loaded"):
            from cupy import RawModule

            self._module = RawModule(path=str(cubin.path), enable_cooperative_groups=True)
            self._kernel = self._module.get_function(cubin.entry)
            self._most_shared, self._num_sms = _sizes()
            if 0 < cubin.shared_bytes <= self._most_shared:
                self._kernel.max_dynamic_shared_size_bytes = cubin.shared_bytes

    def tell(self, machine: npt.NDArray[np.int64], stream: int) -> None:
        """Write the constant of its module, and wait for it.

        Modules of the same file are the same to CuPy, so a kernel that is loaded again is told
        anew.

        Args:
            machine: of `comms.cuda.machine`.
            stream: handle of the stream of the copy.

        Raises:
            RuntimeFailure: CUDA refuses.
        """
        with explained(f"kernel {self.cubin.name} cannot be told where windows are"):
            from cupy.cuda import driver, runtime

            try:
                address = self._module.get_global(SYMBOL).ptr
            except driver.CUDADriverError as error:
                # The linker has dropped what this kernel does not use.
                if error.status != _NOT_FOUND:
                    raise
                return
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(address, machine.ctypes.data, machine.nbytes, kind, stream)
            runtime.streamSynchronize(stream)

    def refuses(self, num_blocks: int) -> str | None:
        """Return why so many blocks cannot be on the GPU at once, or None.

        CuPy would launch fewer of them, with a warning.
        """
        cubin = self.cubin
        warps = cubin.num_threads // LANES
        if cubin.shared_bytes > self._most_shared:
            return (
                f"kernel {cubin.name} with {warps} warps needs {cubin.shared_bytes} bytes of "
                f"shared memory, of {self._most_shared} that an SM gives: use fewer warps (--knob)"
            )
        with explained(f"how many blocks of kernel {cubin.name} fit cannot be asked for"):
            from cupy.cuda import driver

            per_sm = driver.occupancyMaxActiveBlocksPerMultiprocessor(
                self._kernel.kernel.ptr, cubin.num_threads, cubin.shared_bytes
            )
        most = per_sm * self._num_sms
        if num_blocks <= most:
            return None
        return (
            f"kernel {cubin.name} waits between its {num_blocks} blocks of {warps} warps, of which "
            f"{most} fit on this GPU's {self._num_sms} SMs at once: use fewer --num-sms, or fewer "
            "ranks a card"
        )

    def launch(self, grid: tuple[int, int], args: Sequence[np.int64], stream: Stream) -> None:
        """Put a cooperative launch on a stream.

        Raises:
            RuntimeFailure: CUDA refuses it.
        """
        with explained(f"kernel {self.cubin.name} cannot be launched"):
            self._kernel(
                grid,
                (self.cubin.num_threads,),
                tuple(args),
                shared_mem=self.cubin.shared_bytes,
                stream=stream,
            )


def _sizes() -> tuple[int, int]:
    """Return the most shared memory of a block, and the SMs, of this thread's GPU."""
    from cupy.cuda import runtime

    properties = runtime.getDeviceProperties(runtime.getDevice())
    return properties["sharedMemPerBlockOptin"], properties["multiProcessorCount"]
