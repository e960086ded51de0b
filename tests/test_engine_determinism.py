"""Same inputs, same bytes, times and events: again, and in a fresh process."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import kernels_for_tests as code
import numpy as np
from engine_world import Programs, Sandbox, Step

from comms.sim.engine import Options

ROOT = Path(__file__).parent.parent


def busy_programs(box: Sandbox, seed: int) -> Programs:
    """Return programs of everything at once: rows, words, puts, barriers, races for rows."""
    rng = np.random.default_rng(seed)
    programs: dict[tuple[int, int, int], list[Step]] = {}
    for rank in range(box.world_size):
        node = rank // box.ranks_per_node * box.ranks_per_node
        for sm in range(2):
            for warp in range(4):
                steps = programs[rank, sm, warp] = []
                for _ in range(12):
                    near = int(node + rng.integers(box.ranks_per_node))
                    far = int((rank + box.ranks_per_node) % box.world_size)
                    # Rows of all ranks race for the same few places.
                    row, index = int(rng.integers(8)), int(rng.integers(16))
                    choices: list[Step] = [
                        box.copy(rank, near, row=row),
                        (code.COPY_ROW_BULK, *box.copy(rank, near, row=row)[1:]),
                        (code.ADD, near, box.flag(index), 1),
                        (code.FETCH_ADD, near, box.flag(index), 1, box.result(index)),
                        box.put(rank, far, row=row, channel=warp),
                        (code.PUT_SIGNAL, far, box.flag(index), 1, warp),
                        (code.FENCE,),
                    ]
                    steps += [choices[int(rng.integers(len(choices)))], (code.BLOCK_SYNC,)]
    return programs


def trace(skew_ns: int = 0) -> dict[str, object]:
    """Return all that a run came to."""
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    for rank in range(4):
        box.view(rank, "x")[:] = rank + 1
    launch = box.launch(busy_programs(box, 7))
    skew = 1000 * skew_ns * np.arange(4, dtype=np.int64)
    options = Options(slot_bytes=1 << 12, transfers_per_warp=12, num_channels=4, skew_ps=skew)
    outcome = box.engine.run([launch, launch], options)
    memory = b"".join(box.view(rank, name).tobytes() for rank in range(4) for name in ("recv",))
    flags = [box.view(rank, "flags", np.int64)[:16].tolist() for rank in range(4)]
    return {
        "memory": hashlib.sha256(memory).hexdigest(),
        "flags": flags,
        "results": box.results.tolist(),
        "times": outcome.end_ps.tolist(),
        "events": outcome.num_events,
        "bytes": outcome.port_bytes.tolist(),
    }


def test_the_same_again_in_one_process() -> None:
    assert trace() == trace()


def test_the_same_again_in_a_fresh_process() -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import json, test_engine_determinism\n"
        "print(json.dumps(test_engine_determinism.trace()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(done.stdout) == trace()


def test_slices_change_nothing() -> None:
    box = Sandbox(num_nodes=2, ranks_per_node=2)
    programs = busy_programs(box, 3)
    end = int(box.run(programs).end_ps.max())
    for size in (1, 17):
        again = Sandbox(num_nodes=2, ranks_per_node=2)
        times = [now for now, _ in again.stepwise(busy_programs(again, 3), size)]
        assert times == sorted(times)
        assert times[-1] >= end
        for rank in range(4):
            assert np.array_equal(again.view(rank, "recv"), box.view(rank, "recv"))


def test_skew_changes_who_wins() -> None:
    first, second = trace(), trace(skew_ns=700)
    assert first["bytes"] == second["bytes"]
    assert first["times"] != second["times"]
