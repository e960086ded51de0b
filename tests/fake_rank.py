"""A rank over MPI with fake GPUs, for a test: windows by handles of processes that are real."""

import fake_ranks
import pytest
from fake_cuda import install_cuda
from fake_gpus import FakeMachine
from test_cuda_windows import LAYOUT, _use

from comms.cuda.cards import choose_cards, use_card
from comms.cuda.windows import IpcWindows
from comms.errors import RuntimeFailure
from comms.mpi.launched import launched
from comms.mpi.ranks import join, leave


def main() -> None:
    """Map the others' windows; then fail on one rank, and see that all do."""
    ranks = join(launched())
    fake_ranks.this_process().rank = ranks.rank
    machine = FakeMachine()
    with pytest.MonkeyPatch.context() as patch:
        install_cuda(patch, machine)
        use_card(choose_cards(ranks)[ranks.rank])
        _use(IpcWindows(LAYOUT, ranks), ranks)
        if ranks.rank == 1:
            machine.faults["ipcOpenMemHandle", 1] = 205
        with pytest.raises(RuntimeFailure, match="rank 1 cannot map the window of rank 0"):
            IpcWindows(LAYOUT, ranks)
        assert machine.left() == []
    print(f"rank{ranks.rank}:ok", flush=True)
    leave()


if __name__ == "__main__":
    main()
