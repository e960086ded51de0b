"""A kernel's parameters on GPUs: read where they are used, not carried along.

`p` has no value in compiled code. Its fields are calls of the entry's `ep_param_...`, which the
compiler may neither merge nor move: what a kernel computes from parameters is computed again where
it is used, from constant memory, and takes no register in between. A kernel has dozens of
parameters; left to itself, LLVM computes all that follows from them before the first loop.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.cudadecl import registry as declarations
from numba.cuda.cudaimpl import registry as implementations
from numba.cuda.datamodel.models import OpaqueModel
from numba.cuda.extending import intrinsic, register_model
from numba.cuda.typing.templates import AttributeTemplate


class ParamsType(types.Type):  # type: ignore[misc]
    """The type of `p`.

    Attributes:
        fields: names of the parameters.
    """

    def __init__(self, params: type) -> None:
        self.fields: tuple[str, ...] = params._fields  # type: ignore[attr-defined]
        super().__init__(f"{params.__module__}.{params.__qualname__}")


register_model(ParamsType)(OpaqueModel)


@declarations.register_attr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    key = ParamsType

    def generic_resolve(self, typ: ParamsType, attr: str) -> Any:
        return types.int64 if attr in typ.fields else None


@implementations.lower_getattr_generic(ParamsType)
def _read(context: Any, builder: ir.IRBuilder, typ: ParamsType, value: Any, attr: str) -> Any:
    signature = ir.FunctionType(ir.IntType(64), [])
    function = cgutils.get_or_insert_function(builder.module, signature, accessor(attr))
    return builder.call(function, [])


def accessor(field: str) -> str:
    """Return the function of the entry that reads a parameter."""
    return f"ep_param_{field}"


def params_of(params: type) -> Callable[[], Any]:
    """Return what a compiled function calls to have the parameters of a launch, a named tuple."""

    @intrinsic
    def read(typingctx):  # type: ignore[no-untyped-def]
        def nothing(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return context.get_dummy_value()

        return ParamsType(params)(), nothing

    return read
