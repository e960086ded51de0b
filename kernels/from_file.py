"""A kernel of one's own: protocols that a Python file outside of the project defines.

It is asked for as `path/to/file.py:name`, where `name` is a `Protocol` or a tuple of them, and
`path/to/file.py:name/variant` for one of several. The file is read once: what was read is what is
run, compiled and recorded, whatever happens to the file meanwhile.
"""

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from comms.errors import EpbenchError, UsageError
from comms.sources import pin, text_of
from kernels.protocol import Protocol

_REFERENCE = re.compile(r"(?P<path>[^:]+\.py)(:(?P<name>[^/]*)(/(?P<variant>.*))?)?")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class KernelFile:
    """Where protocols that are not in the project come from, and what they are.

    Attributes:
        path: the file as it was asked for, relative to where epbench was started, or absolute.
        name: the attribute that was asked for.
        sha256: of the file; where it imports modules beside it, of the file and of these, one
            after the other in order of their names.
        protocols: what `name` is, variants of one kernel.
    """

    path: str
    name: str
    sha256: str
    protocols: tuple[Protocol, ...] = field(compare=False, repr=False)

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        return self.protocols[0].kernel


def load_kernel_file(asked: str) -> tuple[KernelFile, list[str]]:
    """Load what `path/to/file.py:name` or `path/to/file.py:name/variant` asks for.

    Returns:
        The kernel, and the variants asked for.

    Raises:
        UsageError: there is no such file, name or variant, or the file cannot be imported.
    """
    match = _REFERENCE.fullmatch(asked)
    if match is None:
        raise UsageError(f"a kernel of a file is asked for as path/to/file.py:name, got {asked!r}")
    path, name, variant = Path(match["path"]), match["name"], match["variant"]
    module, sha256 = _read(path)
    protocols = _protocols(module, path, name)
    loaded = KernelFile(str(path), name, sha256, protocols)
    known = [protocol.variant for protocol in protocols]
    if variant is None:
        return loaded, known
    if variant not in known:
        raise UsageError(f"{path}:{name} has no variant {variant!r}; it has {', '.join(known)}")
    return loaded, [variant]


def _read(path: Path) -> tuple[ModuleType, str]:
    """Return the file's module, and the hash of what it was made of."""
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UsageError(f"there is no kernel file {path}{where}; give the path of a Python file")
    with telling_errors(path):
        try:
            modules, data = pin(path)
        except OSError as error:
            raise UsageError(f"kernel file {path} cannot be read: {error.strerror}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        return _execute(path, Path.cwd(), sha256, tuple(modules)), sha256


@cache
def _execute(path: Path, cwd: Path, sha256: str, beside: tuple[str, ...]) -> ModuleType:
    """Run a pinned file as a module; `cwd` and `sha256` tell it from others of this path.

    Args:
        path: the file.
        cwd: where it begins if it is relative.
        sha256: of its content and that of the modules beside it.
        beside: names of these modules, which are imported anew.
    """
    module = ModuleType(f"kernel_{path.stem}_{sha256[:16]}")
    module.__file__ = str(path)
    # Numba and `inspect` look for a function's module by its name.
    sys.modules[module.__name__] = module
    hidden = {name: sys.modules.pop(name) for name in beside if name in sys.modules}
    wrote_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, os.path.abspath(path.parent))
    importlib.invalidate_caches()
    try:
        exec(compile(text_of(path), str(path), "exec"), module.__dict__)
    finally:
        sys.path.remove(os.path.abspath(path.parent))
        sys.dont_write_bytecode = wrote_bytecode
        sys.modules.update(hidden)
    return module


def _protocols(module: ModuleType, path: Path, name: str | None) -> tuple[Protocol, ...]:
    """Return the protocols that a name of a module stands for."""
    if not name:
        raise UsageError(f"which kernel of {path} is missing: {path}:NAME; {_there(module)}")
    if name not in vars(module):
        raise UsageError(f"{path} has no {name!r}; {_there(module)}")
    value = vars(module)[name]
    protocols = (value,) if isinstance(value, Protocol) else value
    if (
        not isinstance(protocols, tuple)
        or not protocols
        or not all(isinstance(each, Protocol) for each in protocols)
    ):
        raise UsageError(
            f"{path}:{name} is {_kind(value)}, neither a kernels.protocol.Protocol nor a tuple of "
            f"them; {_there(module)}"
        )
    for attribute in ("kernel", "variant"):
        for protocol in protocols:
            value = getattr(protocol, attribute)
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise UsageError(
                    f"{attribute} of {path}:{name} must be made of letters, digits, _, - and ., "
                    f"got {value!r}"
                )
    kernels = list(dict.fromkeys(protocol.kernel for protocol in protocols))
    if len(kernels) > 1:
        raise UsageError(
            f"{path}:{name} must be variants of one kernel, got {', '.join(kernels)}; "
            "put each kernel into a tuple of its own"
        )
    variants = [protocol.variant for protocol in protocols]
    if len(set(variants)) < len(variants):
        raise UsageError(f"{path}:{name} has a variant twice: {', '.join(variants)}")
    return protocols


def _there(module: ModuleType) -> str:
    """Return which names of a module may be asked for."""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, Protocol)
        or (isinstance(value, tuple) and value and isinstance(value[0], Protocol))
    ]
    return f"it has {', '.join(names)}" if names else "it has no Protocol"


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"


@contextmanager
def telling_errors(path: Path) -> Iterator[None]:
    """Turn what a kernel file raises into one sentence with the file's own line.

    Raises:
        UsageError: something was raised.
    """
    try:
        yield
    except EpbenchError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{_shown(error.filename, path)}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        raise UsageError(f"{line}: {type(error).__name__}: {error}") from error


def _line_of(error: BaseException, path: Path) -> str:
    """Return the innermost line of the file, or of its folder, that an error came through."""
    folder = os.path.abspath(path.parent)
    line = str(path)
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.dirname(os.path.abspath(frame.filename)) == folder:
            line = f"{_shown(frame.filename, path)}:{frame.lineno}"
    return line


def _shown(filename: str | None, path: Path) -> str:
    """Return a file beside `path` as a user would write it."""
    return str(path.parent / Path(filename).name) if filename else str(path)
