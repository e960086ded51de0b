"""Binding: a kernel rebuilt so that `isa` is a device's instructions, and its helpers likewise.

The kernel's source is parsed again, with its place given to every instruction that waits, so that a
report can name it on any device. A device with `at_line` is also told before statements that may
stall a warp, and one with `floor_div` and `modulo` divides in its own way.
"""

import ast
import builtins
import difflib
import dis
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import kernels.isa as specification
from comms import waits
from comms.errors import UsageError
from kernels.isa.plain_loops import PlainLoops

#: Instructions that take the line they stand on.
_WITH_LINE = ("wait_ge", "wait_any", "wait_all", "block_sync", "group_sync")
#: How the names of instructions begin that may stall a warp besides: for room in a queue, for rows,
#: for acknowledgements, for a reply.
_MAY_STALL = ("add", "copy_", "fence_", "fetch_add", "put_", "reduce_", "store_release", "store")
#: The device's name in a rebuilt function.
_DEVICE = "_epbench_device"
#: What a device may do in its own way, by operator.
_DIVISIONS: dict[type[ast.operator], str] = {ast.FloorDiv: "floor_div", ast.Mod: "modulo"}
#: Memory that only the own warp or block can see: nothing to wait for.
_NEVER_STALL = ("store_i32", "store_i64")


def instruction(node: ast.AST) -> str | None:
    """Return the instruction that a node of a kernel's source calls, None where it does not."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    owner = node.func.value
    return node.func.attr if isinstance(owner, ast.Name) and owner.id == "isa" else None


class _Adapts(ast.NodeTransformer):
    """Adds the place of each instruction that waits, and what a device does in its own way.

    A place is made of a file's tag and a line.
    """

    def __init__(self, tag: int, *, tells_lines: bool, divides: bool, counts: bool) -> None:
        self._tag = tag
        self._tells_lines = tells_lines
        self._divides = divides
        self._loops = PlainLoops() if counts else None

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if instruction(node) in _WITH_LINE:
            node.args.append(self._place(node))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        name = _DIVISIONS.get(type(node.op))
        # By a constant, a compiler multiplies and shifts.
        if not self._divides or name is None or isinstance(node.right, ast.Constant):
            return node
        call = ast.Call(_device(name), [node.left, node.right], [])
        return ast.copy_location(call, node)

    def visit_For(self, node: ast.For) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        plain = self._loops.rewrite(node) if self._loops else None
        return node if plain is None else plain

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self._told(node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        return self._told(node)

    def visit_Return(self, node: ast.Return) -> Any:
        return self._told(node)

    def _told(self, node: ast.stmt) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if not self._tells_lines or not any(map(_may_stall, ast.walk(node))):
            return node
        call = ast.Expr(ast.Call(_device("at_line"), [self._place(node)], []))
        return [ast.copy_location(call, node), node]

    def _place(self, node: ast.Call | ast.stmt) -> ast.expr:
        place = ast.Constant(waits.place_of(self._tag, node.lineno))
        return ast.copy_location(place, node)


def _device(name: str) -> ast.expr:
    """Return what a device does besides the instructions; helpers may not import those."""
    return ast.Attribute(ast.Name(_DEVICE, ast.Load()), name, ast.Load())


def _may_stall(node: ast.AST) -> bool:
    name = instruction(node)
    return name is not None and name.startswith(_MAY_STALL) and name not in _NEVER_STALL


@cache
def bind(function: Callable[..., Any], device: ModuleType, compiler: Callable[..., Any]) -> Any:
    """Return `function` compiled against a device's instructions.

    Args:
        function: a kernel or a helper, a plain function of a module.
        device: module with the device's instructions.
        compiler: turns a Python function into a compiled one, for example `numba.njit`.

    Raises:
        UsageError: the function's source cannot be read, or names what does not exist.
    """
    return compiler(rebuild(function, device, compiler))


def rebuild(
    function: Callable[..., Any], device: ModuleType, compiler: Callable[..., Any]
) -> FunctionType:
    """Return `function` with its instructions and helpers replaced, not yet compiled."""
    assert isinstance(function, FunctionType), f"{function} is not a plain function"
    definition, path = parse(function)
    _refuse_unknown(definition, path)
    tag = waits.name_file(function.__module__, path)
    adapts = _Adapts(
        tag,
        tells_lines=hasattr(device, "at_line"),
        divides=hasattr(device, "floor_div"),
        counts=hasattr(device, "PLAIN_LOOPS"),
    )
    definition = adapts.visit(definition)
    definition.decorator_list = []
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    namespace = {**function.__globals__, _DEVICE: device}
    for name in global_names(function):
        value = namespace.get(name)
        if value is specification:
            namespace[name] = device
        elif isinstance(value, FunctionType):
            namespace[name] = bind(value, device, compiler)
        elif name not in namespace and not hasattr(builtins, name):
            raise UsageError(f"{path}:{_line_of(name, definition)}: name {name!r} is not defined")
    module = ast.fix_missing_locations(ast.Module([definition], []))
    exec(compile(module, path, "exec"), namespace)
    rebuilt: FunctionType = namespace[function.__name__]
    rebuilt.__module__ = function.__module__
    return rebuilt


def name_files(function: Callable[..., Any]) -> None:
    """Let reports name the files of a kernel and of its helpers, which need not be bound here."""
    todo, seen = [function], set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        assert isinstance(one, FunctionType), f"{one} is not a plain function"
        waits.name_file(one.__module__, inspect.getsourcefile(one) or "")
        values = [one.__globals__.get(name) for name in global_names(one)]
        todo += [
            value
            for value in values
            if isinstance(value, FunctionType) and value.__module__ != specification.__name__
        ]


def global_names(function: FunctionType) -> list[str]:
    """Return the globals that a function reads; attributes of the same name are none."""
    instructions = dis.get_instructions(function)
    return list(dict.fromkeys(str(i.argval) for i in instructions if i.opname == "LOAD_GLOBAL"))


def _refuse_unknown(definition: ast.FunctionDef, path: str) -> None:
    """Refuse what is written like an instruction and is none."""
    for node in ast.walk(definition):
        if not isinstance(node, ast.Attribute) or hasattr(specification, node.attr):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == "isa":
            near = difflib.get_close_matches(node.attr, vars(specification), 1)
            hint = f"; did you mean {near[0]}?" if near else ", see kernels/isa/__init__.py"
            raise UsageError(f"{path}:{node.lineno}: there is no instruction {node.attr}{hint}")


def _line_of(name: str, definition: ast.FunctionDef) -> int:
    return next(
        node.lineno
        for node in ast.walk(definition)
        if isinstance(node, ast.Name) and node.id == name
    )


def parse(function: Callable[..., Any]) -> tuple[ast.FunctionDef, str]:
    """Return a function's definition, its lines counted from the start of its file, and the file.

    Raises:
        UsageError: the function's source cannot be read.
    """
    try:
        source = textwrap.dedent(inspect.getsource(function))
        path = inspect.getsourcefile(function) or ""
    except (OSError, TypeError) as error:
        raise UsageError(
            f"the source of kernel {function.__name__} cannot be read; define it in a file"
        ) from error
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef), f"{function.__name__} is not a plain function"
    ast.increment_lineno(definition, inspect.getsourcelines(function)[1] - 1)
    return definition, path
