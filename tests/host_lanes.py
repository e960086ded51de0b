"""Instructions of the GPU's header run one by one by 32 lanes a warp, on this machine's CPUs.

A program is a list of steps for each warp, a step an instruction of `cuh/exports.cuh` by its name
without `ep_`, and its arguments: integers, or `at(offset)` for the address of a byte of the own
window. A launch runs the programs of all warps of all ranks and returns what each lane got.
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from functools import cache

import host_build
import host_world
import numpy as np
import numpy.typing as npt
from host_build import ISA, Mutation, Sanitizer
from host_world import BulkTimes, Outcome, Windows

Step = tuple[str | int, ...]
Results = npt.NDArray[np.int64]
#: Warps of a launch by (rank, block, warp).
Programs = Mapping[tuple[int, int, int], Sequence[Step]]

LANES = 32
#: The instruction, which arguments are in the own window, arguments.
_COLUMNS = 12
_NOTHING = -1


class at(int):  # noqa: N801
    """An offset in the own window that stands for the address there."""


_SOURCE = """\
#include "cuh/exports.cuh"

namespace ep {{

// Not of the set: what its instructions are made of.
i64 quantize(i64 out, i64 scales, i64 row, i64 hidden) {{
  quantize_row(out, scales, row, hidden);
  return 0;
}}
i64 convert(i64 out, i64 values, i64 count) {{
  for (i64 index = lane_id(); index < count; index += LANES) {{
    const float low = as_float(static_cast<u32>(load_i32(values + 8 * index)));
    const float high = as_float(static_cast<u32>(load_i32(values + 8 * index + 4)));
    store_i32(out + 8 * index, static_cast<i32>(to_bf16x2(low, high)));
    store_i32(out + 8 * index + 4, static_cast<i32>(to_e4m3x2(low, high)));
  }}
  return 0;
}}

template <class... Arguments, std::size_t... INDEX>
i64 apply(i64 (*step)(Arguments...), const i64* arguments, std::index_sequence<INDEX...>) {{
  return step(arguments[INDEX]...);
}}
template <class... Arguments, std::size_t... INDEX>
i64 apply(void (*step)(Arguments...), const i64* arguments, std::index_sequence<INDEX...>) {{
  step(arguments[INDEX]...);
  return 0;
}}
template <class Result, class... Arguments>
i64 call(Result (*step)(Arguments...), const i64* arguments) {{
  return apply(step, arguments, std::index_sequence_for<Arguments...>());
}}
template <auto STEP>
i64 step_of(const i64* arguments) {{
  return call(STEP, arguments);
}}

constexpr i64 (*STEPS[])(const i64*) = {{{steps}}};

}}  // namespace ep

extern "C" __global__ void run_steps(i64 programs, i64 num_steps, i64 results) {{
  ep::begin_block();
  const i64 warp = ep::block_index() * ep::num_warps() + ep::warp_index();
  const i64* step = reinterpret_cast<const i64*>(programs) + warp * num_steps * {columns};
  i64* result = reinterpret_cast<i64*>(results) + warp * num_steps * ep::LANES + ep::lane_id();
  for (i64 index = 0; index < num_steps; ++index, step += {columns}, result += ep::LANES) {{
    if (step[0] < 0) continue;
    i64 arguments[{columns} - 2];
    for (int place = 0; place < {columns} - 2; ++place)
      arguments[place] = step[2 + place] + (step[1] >> place & 1 ? ep::own(0) : 0);
    *result = ep::STEPS[step[0]](arguments);
  }}
  ep::end_block();
}}
"""

_EXTRA = {"quantize": "ep::quantize", "convert": "ep::convert"}


@cache
def _steps() -> dict[str, str]:
    """Return the C++ function of each step by its name."""
    text = (ISA / "cuh" / "exports.cuh").read_text()
    names = re.findall(r"^EP_(?:CALLED|INLINED) \w+ ep_(\w+)\(", text, re.MULTILINE)
    return {**{name: f"ep_{name}" for name in names}, **_EXTRA}


def source() -> str:
    """Return the kernel that runs steps."""
    thunks = ", ".join(f"step_of<&{function}>" for function in _steps().values())
    return _SOURCE.format(steps=thunks, columns=_COLUMNS)


def _table(programs: Programs, shape: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Return programs as int64 `(rank, block, warp, step, column)`."""
    codes = {name: code for code, name in enumerate(_steps())}
    longest = max(map(len, programs.values()))
    table = np.zeros((*shape, longest, _COLUMNS), np.int64)
    table[..., 0] = _NOTHING
    for where, program in programs.items():
        rows = []
        for name, *arguments in program:
            mask = sum(1 << place for place, value in enumerate(arguments) if isinstance(value, at))
            missing = [0] * (_COLUMNS - 2 - len(arguments))
            rows.append([codes[str(name)], mask, *map(int, arguments), *missing])
        if rows:
            table[where][: len(rows)] = rows
    return table


@cache
def _loaded(defines: tuple[str, ...], mutation: Mutation | None) -> ctypes.CDLL:
    library = host_build.library(source(), "run_steps", defines=defines, mutation=mutation)
    return ctypes.CDLL(str(library))


_SWITCHES = ("EP_BULK", "EP_GROUPS")


def launch(
    programs: Programs,
    windows: Windows,
    *,
    num_blocks: int = 1,
    num_warps: int = 1,
    ranks_per_node: int | None = None,
    abort_offset: int = 0,
    limit_s: float = 20.0,
    seed: int = 1,
    bulk_times: BulkTimes = "at_any_time",
    defines: Sequence[str] = (),
    mutation: Mutation | None = None,
) -> tuple[Results, Outcome]:
    """Run programs in this process.

    Args:
        programs: steps of each warp; the others do nothing.
        windows: of `host_world.windows`; read and written.
        num_blocks: blocks of each rank.
        num_warps: warps of each block.
        ranks_per_node: ranks of a node, all by default.
        abort_offset: word of each window that ends its rank's waits.
        limit_s: longest that a wait may take.
        seed: order of turns.
        bulk_times: when bulk copies happen.
        defines: macros besides those for bulk copies and groups.
        mutation: a mistake to make in a header.

    Returns:
        Results, int64 `(rank, block, warp, step, lane)`, and how it ended.
    """
    table = _table(programs, (len(windows), num_blocks, num_warps))
    results = np.full((*table.shape[:4], LANES), _NOTHING, np.int64)
    params = np.array(
        [
            (table[rank].ctypes.data, table.shape[3], results[rank].ctypes.data)
            for rank in range(len(windows))
        ],
        np.int64,
    )
    report = np.zeros(len(host_world.REPORT_FIELDS), np.int64)
    message = ctypes.create_string_buffer(host_world.MESSAGE_BYTES)
    world = host_world.make_world(
        windows=windows,
        num_blocks=num_blocks,
        num_warps=num_warps,
        num_params=params.shape[1],
        ranks_per_node=ranks_per_node,
        abort_offset=abort_offset,
        limit_s=limit_s,
        seed=seed,
        bulk_times=bulk_times,
    )
    world.params, world.report = params.ctypes.data, report.ctypes.data
    world.message = ctypes.addressof(message)
    _loaded((*_SWITCHES, *defines), mutation).ep_host_run(ctypes.byref(world))
    return results, host_world.outcome_of(message.raw, report.tolist())


def one(*step: str | int, windows: Windows, **options: object) -> int:
    """Run one step by one warp of rank 0; all lanes must get the same, which is returned."""
    results, outcome = launch({(0, 0, 0): [step]}, windows, **options)  # type: ignore[arg-type]
    assert outcome.is_clean, outcome
    got = results[0, 0, 0, 0]
    assert (got == got[0]).all(), got
    return int(got[0])


def launch_watched(
    programs: Programs,
    windows: Windows,
    sanitizer: Sanitizer,
    *,
    num_blocks: int = 1,
    num_warps: int = 1,
    mutation: Mutation | None = None,
    limit_s: float = 20.0,
    seed: int = 1,
    bulk_times: BulkTimes = "at_any_time",
) -> Outcome:
    """Run programs in a process of their own, watched by a sanitizer; else as `launch`."""
    table = _table(programs, (len(windows), num_blocks, num_warps))
    num_bytes = windows.shape[1]
    # The kernel's programs and results are in the windows, behind what the programs use.
    widened = host_world.windows(len(windows), num_bytes + table[0].nbytes * (1 + LANES))
    widened[:, :num_bytes] = windows
    widened[:, num_bytes : num_bytes + table[0].nbytes] = table.view(np.uint8).reshape(
        len(windows), -1
    )
    outcome = host_world.run(
        source(),
        "run_steps",
        num_blocks=num_blocks,
        num_warps=num_warps,
        params=[
            (
                host_world.address_of(widened, rank, num_bytes),
                table.shape[3],
                host_world.address_of(widened, rank, num_bytes + table[0].nbytes),
            )
            for rank in range(len(windows))
        ],
        windows=widened,
        limit_s=limit_s,
        seed=seed,
        bulk_times=bulk_times,
        defines=_SWITCHES,
        sanitizer=sanitizer,
        mutation=mutation,
    )
    windows[:] = widened[:, :num_bytes]
    return outcome
