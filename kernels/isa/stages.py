"""The names of a kernel's stages, as its source calls them."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

from kernels.isa.bind import global_names, instruction, parse


@cache
def stage_names(kernel: Callable[..., Any]) -> dict[int, str]:
    """Return the name of each number that a kernel or its helpers give to `isa.mark`.

    The name is that of the module's constant, in lower case. Numbers mean something within one
    kernel only; a number without a name, or with several, is shown by what there is.

    Raises:
        UsageError: the source cannot be read.
    """
    names: dict[int, dict[str, None]] = {}
    for function in _functions(kernel, set()):
        for node in ast.walk(parse(function)[0]):
            if instruction(node) == "mark" and isinstance(node, ast.Call):
                (stage,) = node.args
                number = function.__globals__.get(stage.id) if isinstance(stage, ast.Name) else None
                if isinstance(stage, ast.Name) and isinstance(number, int):
                    names.setdefault(number, {})[stage.id.lower()] = None
    return {number: " or ".join(found) for number, found in names.items()}


def _functions(function: Callable[..., Any], seen: set[FunctionType]) -> Iterator[FunctionType]:
    """Yield a function and its helpers, each once."""
    assert isinstance(function, FunctionType), f"{function} is not a plain function"
    seen.add(function)
    yield function
    for name in global_names(function):
        helper = function.__globals__.get(name)
        if isinstance(helper, FunctionType) and helper not in seen:
            yield from _functions(helper, seen)
