"""Predicted times that must not change unnoticed, and the command that writes them anew.

After a change that is meant to move them, run `python -m tests.golden_times` from the root of the
clone and look at the difference of `tests/golden/times.json`.
"""

import json
from pathlib import Path

import msgspec

from bench.expand import expand
from bench.grid import Grid
from bench.harness import run_spec

GOLDEN = Path(__file__).parent / "golden" / "times.json"

_SMALL = Grid(tokens=(64,), num_sms=(4,))
_DECODE = Grid(kernel=("low_latency",), tokens=(128,), num_sms=(20,))
GRIDS = {
    "EP8": _SMALL,
    "EP8 cached": msgspec.structs.replace(_SMALL, form=("cached",)),
    "EP2x4": msgspec.structs.replace(_SMALL, nodes=(2,), ranks_per_node=(4,)),
    "EP2x4 on rails": msgspec.structs.replace(
        _SMALL, nodes=(2,), ranks_per_node=(4,), cross_rail="forbidden"
    ),
    "EP8 of H20, bf16": msgspec.structs.replace(
        _SMALL, fabric=("h20",), dispatch_dtype=("bf16",), routing=("hot:4",)
    ),
    "EP8 decode": _DECODE,
    "EP2x8 decode": msgspec.structs.replace(_DECODE, nodes=(2,)),
}


def times_us(name: str) -> dict[str, float]:
    """Return the times of a grid's cases that are not refused, by `kernel/variant op`."""
    rows = [row for spec in expand([GRIDS[name]]) for row in run_spec(spec, lambda *_: None)]
    failed = [row for row in rows if row.status not in ("passed", "skipped")]
    assert not failed, failed[0].reason
    return {
        f"{row.kernel}/{row.variant} {row.op}": row.time_us
        for row in rows
        if row.time_us is not None
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: times_us(name) for name in GRIDS}, indent=1) + "\n")
