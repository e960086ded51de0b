"""Kernels with one mistake: a wait or a fence left out must be seen in what they leave behind."""

import ast
import importlib
import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import kernels_for_tests as code
import numpy as np
import pytest
from engine_world import ROW, Programs, Sandbox, Step

from comms.fabric import load_fabric
from kernels import direct
from kernels.devices.base import World
from kernels.devices.sim import SimDevice
from kernels.protocol import Form, KernelLaunch, Op
from kernels.shape import Shape

#: The package's own `dispatch` is the function.
dispatch_module = importlib.import_module("kernels.direct.dispatch")
RANKS, EXPERTS, TOPK = 4, 16, 4
#: One rank has much more to send, so that the others could end before its rows are there.
TOKENS = np.array([800, 40, 40, 40])


def exchange(box: Sandbox, *, waits: bool) -> Programs:
    """Return programs in which each rank sends its rows to the next and then reads what it got."""
    programs: dict[tuple[int, int, int], list[Step]] = {}
    for rank in range(box.world_size):
        to = (rank + 1) % box.world_size
        send: list[Step] = [box.copy(rank, to, row=row) for row in range(4)]
        send.append((code.STORE_RELEASE, to, box.flag(0), 1))
        wait: list[Step] = [(code.WAIT_GE, box.flag(0), 1)] if waits else []
        reads = [box.peek(rank, 4 * rank + row, row=row) for row in range(4)]
        programs[rank, 0, 0] = [*send, *wait, *reads]
    return programs


@pytest.mark.parametrize("waits", [True, False])
def test_rows_read_without_their_flag_are_poison(waits: bool) -> None:
    box = Sandbox(ranks_per_node=RANKS)
    for rank in range(RANKS):
        box.view(rank, "x")[:ROW] = rank + 1
    # The neighbour of each rank starts later than the rank reads.
    skewed = replace(box.options(), skew_ps=10**7 * np.arange(RANKS, dtype=np.int64))
    box.engine.run([box.launch(exchange(box, waits=waits))], skewed)
    expected = [int.from_bytes([(rank - 1) % RANKS + 1] * 8, "little") for rank in range(RANKS)]
    wrong = box.results[: 4 * RANKS].reshape(RANKS, 4) != np.array(expected)[:, None]
    assert wrong.any(axis=1).tolist() == ([False] * RANKS if waits else [True] + [False] * 3)
    if not waits:
        assert (box.results[:4] == -1).all()


def without_last(call: str) -> ModuleType:
    """Return `kernels.direct.dispatch` without the last statement of `dispatch` that calls `call`.

    It is kept in a folder that lasts, so that its compiled form does.
    """
    tree = ast.parse(inspect.getsource(dispatch_module))
    function = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "dispatch"
    )
    found = [
        (owner.body, statement)
        for owner in ast.walk(function)
        if isinstance(owner, ast.FunctionDef | ast.If | ast.For)
        for statement in owner.body
        if isinstance(statement, ast.Expr) and ast.unparse(statement).startswith(call)
    ]
    body, statement = max(found, key=lambda pair: pair[1].lineno)
    body[body.index(statement)] = ast.copy_location(ast.Pass(), statement)
    name = f"mutant_without_{''.join(filter(str.isalnum, call))}"
    path = Path(__file__).parent.parent / ".pytest_cache" / "mutants" / f"{name}.py"
    source = ast.unparse(ast.fix_missing_locations(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != source:
        path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Code from the disk finds its module by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def wrong_rows(module: ModuleType) -> tuple[int, int]:
    """Dispatch with a module's kernel; return the rows that are wrong and the writes too late."""
    shape = Shape(
        num_nodes=1,
        ranks_per_node=RANKS,
        num_tokens=int(TOKENS.max()),
        hidden=7168,
        num_experts=EXPERTS,
        num_topk=TOPK,
        num_sms=8,
        prefix=192,
    )
    rng = np.random.default_rng(5)
    experts = np.tile(np.arange(EXPERTS, dtype=np.int32), (RANKS, TOKENS.max(), 1))
    topk = np.ascontiguousarray(rng.permuted(experts, axis=2)[..., :TOPK])
    topk[np.arange(TOKENS.max()) >= TOKENS[:, None]] = -1
    goes = (topk[..., None] // shape.experts_per_rank == np.arange(RANKS)).any(axis=2)
    num_rows = goes.sum(axis=(0, 1))
    world = World(
        shape,
        load_fabric("h800"),
        TOKENS,
        int(num_rows.max()),
        np.zeros(RANKS, np.int64),
    )

    def launches(op: Op, form: Form) -> tuple[KernelLaunch, ...]:
        (launch,) = direct.PULL.launches(op, form)
        return (replace(launch, kernel=module.dispatch, params=module.DispatchParams),)

    device = SimDevice(replace(direct.PULL, launches=launches), world)
    stride = shape.dispatch_row.stride_bytes
    x = rng.integers(0, 255, (RANKS, TOKENS.max(), stride), dtype=np.uint8)
    for rank in range(RANKS):
        device.view(rank, "topk_idx", np.int32)[:] = topk[rank].reshape(-1)
        device.view(rank, "x")[:] = x[rank].reshape(-1)
    device.poison(["recv_x"], num_rows.astype(np.int64))
    _, outcome = device.run(["dispatch"], "fresh")
    num_wrong = 0
    for rank in range(RANKS):
        expected = np.concatenate([x[source][goes[source, :, rank]] for source in range(RANKS)])
        found = device.view(rank, "recv_x").reshape(-1, stride)[: len(expected)]
        num_wrong += int((found != expected).any(axis=1).sum())
    return num_wrong, int(outcome.num_late.sum())


def test_the_kernel_itself_is_right() -> None:
    assert wrong_rows(dispatch_module) == (0, 0)


@pytest.mark.parametrize("call", ["isa.wait_ge(p.done, ", "isa.fence_release()"])
def test_a_dispatch_without_its_last_wait_or_fence_leaves_poison(call: str) -> None:
    num_wrong, num_late = wrong_rows(without_last(call))
    assert num_wrong > 0
    # What is missing came after the launch had ended.
    assert num_late >= num_wrong
