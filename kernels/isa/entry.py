"""Entries: what a fiber starts with, a compiled kernel that takes its parameters' address."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import cfunc, types
from numba.extending import intrinsic

from comms.compiling import use_cache
from comms.fiber import install_switch
from comms.parts import WholeCompiler, part
from kernels.isa.bind import bind
from kernels.isa.compile_errors import telling_compile_errors


@intrinsic
def load_params(typingctx, address, params_class):  # type: ignore[no-untyped-def]
    """`load_params(address, Params)`: a named tuple of int64 from consecutive words."""
    params = params_class.instance_class
    result = types.NamedUniTuple(types.int64, len(params._fields), params)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], context.get_value_type(result).as_pointer())
        return builder.load(pointer)

    return result(types.int64, params_class), codegen


_ENTRY = """
def {name}(argument):
    failed = False
    try:
        run(load_params(argument, params_class))
    except Exception:
        failed = True
    if failed:
        device.raised()
    device.finish()
"""

#: The line of `_ENTRY` that calls the kernel.
_CALL_LINE = 1 + _ENTRY[: _ENTRY.index("run(")].count("\n")


@cache
def fiber_entry(kernel: Callable[[Any], None], params: type[Any], device: ModuleType) -> Any:
    """Compile the entry of a kernel on a device whose warps are fibers.

    Args:
        kernel: function of one argument.
        params: the named tuple class of that argument, all int64.
        device: the device's instructions, with `raised()` and `finish()` besides.

    Returns:
        A compiled callback with an `address`; keep it as long as the address is in use.

    Raises:
        UsageError: the kernel does not compile.
    """
    install_switch()
    path = Path(inspect.getsourcefile(kernel) or "")
    namespace = {
        "device": device,
        "load_params": load_params,
        "params_class": params,
        # Kernels keep Python's arithmetic: a division by zero is an error that names its warp.
        "run": bind(kernel, device, part),
        "__name__": kernel.__module__,
    }
    # The order of parameters is compiled in, wherever their class is from.
    use_cache(tuple(dict.fromkeys((path, Path(inspect.getsourcefile(params) or "")))))
    # Numba keeps compiled functions by name and file: the entry has a name of its own and the
    # kernel's file.
    name = f"{kernel.__name__}_on_{device.__name__.rpartition('.')[2]}"
    exec(compile(_ENTRY.format(name=name), str(path), "exec"), namespace)
    with telling_compile_errors(kernel, path, _CALL_LINE):
        signature = types.void(types.int64)
        return cfunc(signature, cache=True, pipeline_class=WholeCompiler)(namespace[name])
