"""Compiled code in parts: a function that only compiled code calls is optimised where it is used.

Numba optimises each function together with all that it calls and makes machine code of it, and then
does so again for each of its callers. A part stays as it was lowered; a whole, which is what is
called from outside of compiled code, links its parts and optimises them once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm
from numba import njit, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult, compile_result
from numba.core.environment import Environment, lookup_environment


class WholeCompiler(Compiler):
    """Numba's `pipeline_class` of what is called from outside of compiled code."""

    def define_pipelines(self) -> Any:
        """Let the code that parts bring along find their environments."""
        name = self.state.func_id.func_qualname
        self.state.library = _WholeLibrary(self.state.targetctx.codegen(), name)
        self.state.library.enable_object_caching()
        return super().define_pipelines()


def part(function: Callable[..., Any], **options: Any) -> Any:
    """Make a part that lasts as long as the process.

    Args:
        function: gets every signed integer as int64. Numba by itself compiles a function again for
            each constant that a caller writes, and for each width.
        options: those of `numba.njit`.
    """
    compiled = njit(
        no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler, **options
    )(function)
    get_call_template = compiled.get_call_template

    def get_widened(arguments: Sequence[types.Type], keywords: Mapping[str, types.Type]) -> Any:
        named = {name: _widened(argument) for name, argument in keywords.items()}
        return get_call_template(tuple(map(_widened, arguments)), named)

    compiled.get_call_template = get_widened
    return compiled


def kept_part(function: Callable[..., Any], **options: Any) -> Any:
    """Make a part that is kept in the folder of Numba's cache."""
    compiled = part(function, **options)
    compiled._cache = _PartCache(function)
    return compiled


def _widened(argument: types.Type) -> types.Type:
    value = types.unliteral(argument)
    return types.int64 if isinstance(value, types.Integer) and value.signed else argument


def _environments(module: llvm.ModuleRef) -> list[Environment]:
    """Return what holds the Python objects of a module's functions, for example what they print."""
    found = (lookup_environment(variable.name) for variable in module.global_variables)
    return [environment for environment in found if environment is not None]


class _WholeLibrary(JITCodeLibrary):
    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        # Where code of several processes is loaded, functions may share a name: Numba numbers them
        # in each process anew. The loader would take the first of them for all.
        for function in self._final_module.functions:
            if function.linkage == llvm.Linkage.linkonce_odr:
                function.linkage = llvm.Linkage.internal

    def finalize(self) -> None:
        super().finalize()
        for environment in _environments(self._final_module):
            self.codegen.set_env(environment.env_name, environment)


class _PartLibrary(JITCodeLibrary):
    """A function's own code, and which libraries it calls."""

    _shared_module: Any

    @property
    def codegen(self) -> "_PartLibrary":
        """Return what Numba asks to set the environment: without machine code there is no place."""
        return self

    def set_env(self, name: str, environment: object) -> None:
        """Leave the environment to the whole."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                # Several libraries bring it along, and only those that call it keep it.
                function.linkage = llvm.Linkage.linkonce_odr
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return that there is no machine code."""
        self._ensure_finalized()
        return 0

    @classmethod
    def from_bitcode(cls, codegen: Any, name: str, bitcode: bytes) -> "_PartLibrary":
        """Return a part from its code with that of everything it calls."""
        library = cls(codegen, name)
        library._final_module = library._shared_module = llvm.parse_bitcode(bitcode)
        library._finalized = True
        return library

    def with_callees(self) -> llvm.ModuleRef:
        """Return the code with that of everything it calls."""
        self._ensure_finalized()
        if self._shared_module is None:
            self._shared_module = self._final_module.clone()
            for library in self._linking_libraries:
                linked = library._get_module_for_linking()
                self._shared_module.link_in(linked, preserve=True)
        return self._shared_module

    def _get_module_for_linking(self) -> llvm.ModuleRef:
        return self.with_callees()


class _PartCompiler(Compiler):
    def define_pipelines(self) -> Any:
        name = self.state.func_id.func_qualname
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), name)
        return super().define_pipelines()


class _PartCacheImpl(CompileResultCacheImpl):
    def reduce(self, compiled: CompileResult) -> tuple[Any, ...]:
        module, descriptor = compiled.library.with_callees(), compiled.fndesc
        # As Numba does: they cannot be pickled and nobody asks for them.
        descriptor.typemap = descriptor.calltypes = None
        return (
            (compiled.library.name, bytes(module.as_bitcode())),
            (compiled.environment, _environments(module)),
            descriptor,
            compiled.signature,
        )

    def rebuild(self, context: Any, payload: tuple[Any, ...]) -> CompileResult:
        code, (environment, environments), descriptor, signature = payload
        library = _PartLibrary.from_bitcode(context.codegen(), *code)
        return compile_result(
            target_context=context,
            typing_context=context.typing_context,
            entry_point=context.get_executable(library, descriptor, environment),
            library=library,
            fndesc=descriptor,
            environment=environment,
            referenced_envs=environments,
            signature=signature,
            objectmode=False,
            lifted=(),
            reload_init=(),
        )


class _PartCache(FunctionCache):
    _impl_class = _PartCacheImpl
