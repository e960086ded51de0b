"""What runs GPU code on CPUs: lanes that meet, what is refused, and how findings are told."""

import subprocess

import host_build
import host_world
import numpy as np
import pytest
from host_build import Mutation, Sanitizer
from host_world import Outcome, Windows, address_of, run, windows

WINDOW_BYTES = 4096

_TOGETHER = """
#include "cuda.cuh"
using namespace ep;
EP_SHARED i32 of_block[4];
EP_DYNAMIC_SHARED(i32, dynamic);

// Writes to `out` what lane l of each warp gets, 16 int64 for each.
extern "C" __global__ void together(i64 out, i64 values) {
  EP_SHARED i32 of_function;
  i64* got = reinterpret_cast<i64*>(out) + 16 * thread_index();
  const i32 value = load_i32(values + 4 * lane_id());
  const float real = as_float(static_cast<u32>(value) & 0x7f7fffffu);
  got[0] = ballot(value % 3 == 0);
  got[1] = match(value % 5);
  got[2] = shuffle(value, 3);
  got[3] = shuffle(static_cast<i64>(value) << 20, lane_id() + 7);
  got[4] = static_cast<i32>(as_bits(shuffle(real, 5)));
  got[5] = shuffle_up(value, 4);
  got[6] = shuffle_xor(static_cast<i64>(value) << 20, 9);
  got[7] = or_lanes(static_cast<u32>(value));
  got[8] = sum_lanes(value);
  got[9] = static_cast<i32>(as_bits(max_lanes(real)));
  got[10] = multiply_high(static_cast<u32>(value), 0x87654321u);
  got[11] = of_block[2];
  got[12] = of_function;
  got[13] = dynamic[100];
  sync_block();
  if (thread_index() == 0) of_block[2] = block_index(), of_function = 70, dynamic[100] = 80;
  sync_block();
  got[14] = of_block[2] + of_function + dynamic[100];
}
"""


def test_lanes_exchange_what_they_bring() -> None:
    memory = windows(1, 2 * 2 * 32 * 128)
    values = np.random.default_rng(1).integers(-(2**31), 2**31, 32).astype(np.int32)
    memory[0, : values.nbytes] = values.view(np.uint8)
    out = windows(1, 2 * 32 * 128)
    both = windows(2, memory.shape[1])
    both[:, : values.nbytes] = values.view(np.uint8)
    params = [(address_of(both, rank, 8192), address_of(both, rank)) for rank in range(2)]
    outcome = run(_TOGETHER, "together", num_blocks=1, num_warps=2, params=params, windows=both)
    assert outcome.is_clean, outcome
    lane, wide = np.arange(32), values.astype(np.int64)
    real = values & 0x7F7FFFFF

    def bits(flags: np.ndarray) -> int:
        return int((flags.astype(np.int64) << lane).sum())

    def rest(divisor: int) -> np.ndarray:
        return np.fmod(values, divisor)

    everyone = np.ones(32, np.int64)
    poison = np.array([0xCBCBCBCB], np.uint32).view(np.int32)[0]
    expected = [
        bits(rest(3) == 0) * everyone,
        np.array([bits(rest(5) == one) for one in rest(5)]),
        wide[3] * everyone,
        wide[(lane + 7) % 32] << 20,
        real[5] * everyone,
        np.where(lane < 4, wide, wide[lane - 4]),
        wide[lane ^ 9] << 20,
        np.bitwise_or.reduce(values.view(np.uint32)).astype(np.int64) * everyone,
        values.sum(dtype=np.int32) * everyone,
        real.max() * everyone,
        values.view(np.uint32).astype(np.uint64) * np.uint64(0x87654321) >> np.uint64(32),
        *[poison * everyone] * 3,
        150 * everyone,
    ]
    for rank in range(2):
        got = both[rank, 8192 : 8192 + out.shape[1]].view(np.int64).reshape(2, 32, 16)
        for warp in range(2):
            for index, wanted in enumerate(expected):
                assert got[warp, :, index].tolist() == wanted.tolist(), index


_MISUSE = """
#include "cuda.cuh"
using namespace ep;
EP_SHARED u64 barriers[2];
EP_SHARED Vec stages[64];

EP_COLD_FN int deep(int depth, volatile char* above) {
  volatile char here[4096];
  here[0] = above[0];
  return depth == 0 ? here[0] : deep(depth - 1, here) + here[0];
}

extern "C" __global__ void misuse(i64 what, i64 address, i64 value) {
  u64* barrier = &barriers[0];
  const bool first = thread_index() == 0;
  if (first) {
    init_barrier(barrier, 1);
    publish_barriers();
    init_barrier(&barriers[1], 1);
  }
  sync_block();
  switch (what) {
    case 0: break;
    case 1: lane_id() < 9 ? static_cast<void>(ballot(true)) : sync_warp(); break;
    case 2: if (warp_index() == 0) sync_block(); else leave(); break;
    case 3: if (lane_id() != 5) sync_warp(); else sync_block(); break;
    case 4: if (lane_id() == 5) leave(); shuffle(7, 5); break;
    case 5: store_i64(address + 4, 1); break;
    case 6: store_i64(address, divide_wide(5, value)); break;
    case 7: if (first) bulk_load(stages, address, 24, barrier); break;
    case 8: if (first) bulk_load(stages, address, 0, barrier); break;
    case 9: if (first) bulk_load(stages, address, 16, &barriers[1]); break;
    case 10: if (first) expect_bytes(&barriers[1], 16); break;
    case 11: if (first) expect_bytes(barrier, 16), arrive_barrier(barrier); break;
    case 12:
      if (!first) break;
      expect_bytes(barrier, 16);
      bulk_load(stages, address, 16, barrier);
      break;
    case 13:
      if (!first) break;
      expect_bytes(barrier, 16);
      bulk_load(stages, address, 32, barrier);
      while (!try_barrier(barrier, 0)) {
      }
      break;
    case 14: if (first) bulk_store(address, stages, 16), bulk_commit(); break;
    case 15: store_i32(address + 4096, 3); break;
    case 16: store_i32(address, 1 << value); break;
    case 17: store_i32(8 * value, 1); break;
    case 18: { volatile char top[1] = {1}; store_i32(address, deep(200, top)); } break;
    case 19: store_i32(address, load_i32(address + 4096)); break;
    case 20: store_i64(address, static_cast<i64>(first ? stages[value].x : 0)); break;
  }
}
"""


def _misused(what: int, sanitizer: Sanitizer = "none", value: int = 0) -> tuple[Outcome, Windows]:
    memory = windows(1, WINDOW_BYTES)
    params = [(what, address_of(memory, 0), value)]
    outcome = run(
        _MISUSE,
        "misuse",
        num_blocks=1,
        num_warps=2,
        params=params,
        windows=memory,
        limit_s=1,
        sanitizer=sanitizer,
        bulk_times="at_waits",
    )
    return outcome, memory


def test_use_is_clean() -> None:
    for sanitizer in ("none", "address"):
        outcome, _ = _misused(0, sanitizer)  # type: ignore[arg-type]
        assert outcome.is_clean, outcome


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (1, "comes to"),
        (3, "lanes wait for ever"),
        (4, "a shuffle from lane 5, which has left"),
        (5, "an access of 8 bytes at"),
        (6, "a division by zero"),
        (7, "a bulk copy of 24 bytes"),
        (8, "a bulk copy of 0 bytes"),
        (9, "a bulk load with a barrier that was not published"),
        (10, "an arrival at a barrier that was not published"),
        (11, "more arrivals at a barrier than it counts"),
        (12, "a lane ends with a bulk load that nobody has waited for"),
        (13, "a bulk load of 32 bytes that its barrier does not expect"),
        (14, "a lane ends with a stage that a bulk store has not read"),
    ],
)
def test_what_a_gpu_does_not_allow_is_told(what: int, words: str) -> None:
    outcome, _ = _misused(what)
    assert words in outcome.message, outcome


def test_who_has_left_is_not_waited_for() -> None:
    outcome, _ = _misused(2)
    assert outcome.is_clean, outcome


def test_bytes_behind_a_window_are_watched() -> None:
    outcome, _ = _misused(15)
    assert outcome.found == "bytes behind a window were written"
    for what in (15, 19):
        outcome, _ = _misused(what, "address")
        assert "use-after-poison" in outcome.found, outcome


def test_undefined_behaviour_is_told() -> None:
    outcome, _ = _misused(16, "address", value=40)
    assert "shift exponent 40 is too large" in outcome.found, outcome
    outcome, _ = _misused(20, "address", value=64)
    assert "index 64 out of bounds" in outcome.found, outcome


def test_a_crash_is_a_finding() -> None:
    outcome, _ = _misused(17, value=1)
    assert outcome.found == "the program ended with -11"


def test_a_stack_that_is_overrun_ends_the_program() -> None:
    outcome, _ = _misused(18)
    assert outcome.found == "the program ended with -11"


_FENCES = """
#include "cuda.cuh"
using namespace ep;

// Block 0 writes and tells; block 1 is told and reads. Only fences order what they do.
extern "C" __global__ void fences(i64 flag, i64 data, i64 leave_out) {
  if (lane_id() != 0) return;
  if (block_index() == 0) {
    store_i64(data, 7);
    if (leave_out != 1) release_system();
    if (leave_out == 2) store_i64(data, 7);
    store_relaxed(flag, 1);
  } else {
    while (load_polled(flag) == 0) {
    }
    if (leave_out != 3) acquire_polled();
    store_i64(data + 8, load_i64(data));
  }
}
"""


@pytest.mark.parametrize("leave_out", [0, 1, 2, 3])
def test_fences_order_what_is_before_and_after(leave_out: int) -> None:
    memory = windows(1, WINDOW_BYTES)
    params = [(address_of(memory, 0, 64), address_of(memory, 0, 128), leave_out)]
    outcome = run(
        _FENCES,
        "fences",
        num_blocks=2,
        num_warps=1,
        params=params,
        windows=memory,
        sanitizer="thread",
    )
    assert ("data race" in outcome.found) == (leave_out != 0), outcome


def test_parameters_are_as_many_as_the_kernel_takes() -> None:
    memory = windows(1, WINDOW_BYTES)
    outcome = run(_MISUSE, "misuse", num_blocks=1, num_warps=1, params=[(0,)], windows=memory)
    assert outcome.message == "a kernel of 3 parameters is given 1"


def test_what_does_not_compile_is_told() -> None:
    memory = windows(1, WINDOW_BYTES)
    with pytest.raises(AssertionError, match="was not declared"):
        run("void k() { nothing(); }", "k", num_blocks=1, num_warps=1, params=[()], windows=memory)


def test_a_mutation_of_what_is_not_there_is_an_error() -> None:
    memory = windows(1, WINDOW_BYTES)
    mutation = Mutation("cuh/rows.cuh", "no such text", "")
    with pytest.raises(AssertionError, match="must occur once in cuh/rows.cuh"):
        run(
            _MISUSE,
            "misuse",
            num_blocks=1,
            num_warps=1,
            params=[(0, 0, 0)],
            windows=memory,
            mutation=mutation,
        )


def test_a_sanitizer_that_cannot_have_random_addresses_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = []

    def run_program(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        told = "FATAL: ThreadSanitizer: unexpected memory mapping" if len(commands) == 1 else ""
        return subprocess.CompletedProcess(command, 66 if told else 0, "", told)

    host_build.runtime("thread")
    host_build.library(_MISUSE, "misuse", sanitizer="thread")
    monkeypatch.setattr(host_world.subprocess, "run", run_program)
    outcome, _ = _misused(0, "thread")
    assert outcome.is_clean
    assert commands[1] == ["setarch", "-R", *commands[0]]


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_build, "COMPILER", "no-such-compiler")
    with pytest.raises(AssertionError, match="no-such-compiler is not found"):
        host_build._folder.__wrapped__()
