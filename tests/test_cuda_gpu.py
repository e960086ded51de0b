"""Windows, words that end kernels and NCCL on a real GPU."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_ranks import FakeComm, Meeting

from comms.cuda.abort import REGION, AbortWords
from comms.cuda.cards import use_card, visible_cards
from comms.cuda.memory import CardWindows
from comms.cuda.nccl import Communicators, Part
from comms.cuda.windows import IpcWindows, NcclWindows, VirtualWindows
from comms.errors import RuntimeFailure
from comms.memory import Layout
from comms.mpi.launched import launched
from comms.mpi.launcher import find_launcher
from comms.mpi.ranks import Ranks, join, leave, library_name

ROOT = Path(__file__).parent.parent
LAYOUT = Layout({"x": 5_000_000, "seen": 8, REGION: 8})
#: Waits for the word at the first address, and leaves its value at the second.
_SPIN = r"""
extern "C" __global__ void spin(const volatile long long* word, long long* seen) {
    while (*word == 0) __nanosleep(100);
    *seen = *word;
}
"""


def _why_no_gpu() -> str:
    try:
        return "" if visible_cards() else "there is no GPU"
    except RuntimeFailure as error:
        return str(error)


WHY_NOT = _why_no_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


def _alone() -> Ranks:
    comm: Any = FakeComm(Meeting(1), 0)
    return Ranks(comm, 0, 1, 0, 1, 0, 1, "none")


def _use(windows: CardWindows, rank: int) -> None:
    assert not windows.read(rank, "x").any()
    data = np.random.default_rng(rank).integers(0, 256, 4_999_999, np.uint8)
    windows.write(rank, "x", data, at=1)
    assert (windows.read(rank, "x", at=1) == data).all()
    assert int(windows.view(rank, "x")[1]) == data[0]
    windows.fill(rank, "x", 0xFF, 16)
    assert windows.read(rank, "x", np.int64, 0, 16).tolist() == [-1, -1]


def test_windows_of_one_process() -> None:
    use_card(visible_cards()[0])
    windows = VirtualWindows(LAYOUT, 2)
    for rank in range(2):
        _use(windows, rank)
    windows.close()
    windows.close()


def test_windows_that_do_not_fit() -> None:
    with pytest.raises(RuntimeFailure, match="GB of GPU memory are needed"):
        VirtualWindows(Layout({"x": 1 << 42}), 1)


def _end_kernels(windows: CardWindows, ranks: Ranks) -> None:
    """Let a kernel of each rank wait for its word, which the first rank writes."""
    import cupy

    rank = ranks.rank
    words = AbortWords(windows, ranks.world_size)
    stream = cupy.cuda.Stream(non_blocking=True)
    kernel = cupy.RawKernel(_SPIN, "spin")
    word = windows.base(rank) + windows.layout[REGION].offset
    seen = windows.base(rank) + windows.layout["seen"].offset
    with stream:
        kernel((1,), (1,), (np.int64(word), np.int64(seen)))
    time.sleep(0.1)
    assert not stream.done
    ranks.comm.Barrier()
    if rank == 0:
        # Another thread than the one that works, as the one that watches is.
        thread = threading.Thread(target=words.end)
        thread.start()
        thread.join(5)
    stream.synchronize()
    assert windows.word(rank, windows.layout["seen"].offset) == 1
    ranks.comm.Barrier()
    words.clear()
    assert windows.word(rank, windows.layout[REGION].offset) == 0
    words.close()


def test_a_running_kernel_is_ended() -> None:
    use_card(visible_cards()[0])
    windows = VirtualWindows(LAYOUT, 1)
    _end_kernels(windows, _alone())
    windows.close()


def test_nccl_of_one_rank() -> None:
    pytest.importorskip("nccl.core")
    use_card(visible_cards()[0])
    communicators = Communicators(_alone(), limit_s=60)
    windows = VirtualWindows(LAYOUT, 1)
    data = np.arange(1000, dtype=np.uint8)
    windows.write(0, "x", data)
    base = windows.base(0)
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    communicators.of(4).exchange([Part(0, base, 1000, base + 4096, 1000)], stream.ptr)
    communicators.wait(stream.ptr, "the exchange")
    assert (windows.read(0, "x", at=4096, num_bytes=1000) == data).all()
    windows.close()
    communicators.close()


def test_windows_of_nccl() -> None:
    pytest.importorskip("nccl.core")
    use_card(visible_cards()[0])
    windows = NcclWindows(LAYOUT, _alone())
    _use(windows, 0)
    _end_kernels(windows, _alone())
    windows.close()


@pytest.mark.parametrize("num_ranks", [2])
def test_windows_of_processes(num_ranks: int) -> None:
    """Two processes map each other's memory, on two GPUs or on the same."""
    launcher = find_launcher(library_name())
    done = subprocess.run(
        launcher.command(num_ranks, [sys.executable, __file__]),
        env={**launcher.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == num_ranks


def main() -> None:
    """Be one of the processes: the first one ends the others' kernels."""
    ranks = join(launched())
    cards = visible_cards()
    use_card(cards[ranks.local_rank % len(cards)])
    windows = IpcWindows(LAYOUT, ranks)
    _use(windows, ranks.rank)
    ranks.comm.Barrier()
    for peer in range(ranks.world_size):
        assert windows.word(peer, 0) == -1
    ranks.comm.Barrier()
    _end_kernels(windows, ranks)
    windows.close()
    print("ok", flush=True)
    leave()


if __name__ == "__main__":
    main()
