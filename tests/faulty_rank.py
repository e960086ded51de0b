"""`epbench` with a fault put into some rank: `python faulty_rank.py FAULT[:RANK] run ...`."""

import sys
import time

import pytest
from mutants import Mutation, install_mutant

from bench import measured
from bench.cli import main
from comms.mpi import launched, ranks
from kernels.direct import PULL

_PULL, _DISPATCH = "kernels.direct.combine_pull", "kernels.direct.dispatch"
_LOOP = "    for token in range(first, last):\n        at = 4"
#: Mistakes in kernels, by the fault's name.
MUTATIONS = {
    "deadlock": Mutation(_PULL, "p.ready + 8 * peer, epoch)", "p.ready + 8 * peer, epoch + 1)"),
    "divide": Mutation(_PULL, _LOOP, "    first = first // (epoch - epoch)\n" + _LOOP),
    "wrong": Mutation(_PULL, "worker + 1, num_workers)", "worker + 1, num_workers + 1)"),
    # Nobody waits for the rows of others.
    "late": Mutation(
        _DISPATCH,
        "            isa.wait_ge(p.done, epoch * p.ranks_per_node * p.num_sms)\n",
        "            pass\n",
    ),
}


def _fail(*_: object) -> None:
    raise ValueError("a fault of the test")


def _sleep(*_: object) -> None:
    time.sleep(600)


def install(fault: str, rank: int) -> None:
    """Put a fault into this process if it is the one."""
    patch = pytest.MonkeyPatch()
    if fault in MUTATIONS:
        install_mutant(PULL, MUTATIONS[fault], patch)
    me = launched.launched()
    if me is None or me.rank != rank:
        return
    if fault == "raise":
        patch.setattr(measured.Measured, "observe", _fail)
    elif fault == "silent":
        patch.setattr(measured.Measured, "observe", _sleep)
    elif fault == "absent":
        patch.setattr(ranks, "join", _sleep)


if __name__ == "__main__":
    name, _, number = sys.argv[1].partition(":")
    install(name, int(number or -1))
    sys.exit(main(sys.argv[2:]))
