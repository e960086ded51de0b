"""Binding: a kernel rebuilt so that `isa` is a device's instructions, and its helpers likewise.

The kernel's source is parsed again, with the line number given to every instruction that waits, so
that a report can name it on any device.
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
from comms.errors import UsageError

#: Instructions that take the line they stand on.
_WITH_LINE = ("wait_ge", "wait_any", "wait_all", "block_sync", "group_sync")


class _AddLines(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        callee = node.func
        if (
            isinstance(callee, ast.Attribute)
            and isinstance(callee.value, ast.Name)
            and callee.value.id == "isa"
            and callee.attr in _WITH_LINE
        ):
            node.args.append(ast.copy_location(ast.Constant(node.lineno), node))
        return node


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
    definition, path = _parse(function)
    _refuse_unknown(definition, path)
    namespace = dict(function.__globals__)
    for name in _global_names(function):
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


def _global_names(function: FunctionType) -> list[str]:
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


def _parse(function: Callable[..., Any]) -> tuple[ast.FunctionDef, str]:
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
    definition = _AddLines().visit(definition)
    definition.decorator_list = []
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    return definition, path
