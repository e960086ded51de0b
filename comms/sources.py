"""Python files that are not the project's: what they say, and which files beside them they import.

A file that is pinned keeps its text until it is pinned again, whatever an editor does meanwhile:
what was read is what is bound, compiled and named in reports.
"""

import ast
import hashlib
import io
import linecache
import os
from collections.abc import Callable, Iterator
from importlib.util import decode_source, resolve_name
from pathlib import Path

#: Top packages that a file beside a kernel cannot stand for.
_PROJECT = ("bench", "comms", "kernels")


def pin(path: Path) -> tuple[dict[str, Path], bytes]:
    """Fix the text of a file and of the modules that `imports_beside` finds.

    Returns:
        These modules, and the content of the file followed by theirs.

    Raises:
        OSError: a file cannot be read.
        SyntaxError: a file is not Python.
    """
    contents: dict[Path, bytes] = {}

    def read(file: Path) -> str:
        contents[file] = file.read_bytes()
        try:
            text = decode_source(contents[file])
        except UnicodeDecodeError as error:
            told = f"{error.reason} at byte {error.start}"
            raise SyntaxError(told, (str(file), 1, None, None)) from error
        # `inspect` reads sources here; an entry without a time is never looked up again.
        lines = io.StringIO(text).readlines()
        linecache.cache[str(file)] = (len(text), None, lines, str(file))
        return text

    modules = _walk(path, read)
    return modules, b"".join(contents[file] for file in (path, *modules.values()))


def text_of(path: Path) -> str:
    """Return the pinned text of a file, or what it says now."""
    linecache.checkcache(str(path))
    return "".join(linecache.getlines(str(path)))


def imports_beside(path: Path) -> dict[str, Path]:
    """Return the modules of a file's folder that it imports, itself or through each other.

    Returns:
        File of each module by the name that it is imported as, in order of names.

    Raises:
        SyntaxError: one of the files is not Python.
    """
    return _walk(path, text_of)


def _walk(path: Path, read: Callable[[Path], str]) -> dict[str, Path]:
    folder = Path(os.path.abspath(path)).parent
    found: dict[str, Path] = {}
    todo = [("", path)]
    while todo:
        importer, file = todo.pop()
        package = importer if file.name == "__init__.py" else importer.rpartition(".")[0]
        tree = ast.parse(read(file), str(file))
        for name in _imported(tree, package):
            if name.partition(".")[0] in _PROJECT or name in found:
                continue
            stem = folder.joinpath(*name.split("."))
            for candidate in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
                if candidate.is_file() and candidate != Path(os.path.abspath(path)):
                    found[name] = candidate
                    todo.append((name, candidate))
                    break
    return dict(sorted(found.items()))


def digest_of(paths: list[Path]) -> str:
    """Return a hash of files and of what they import beside them."""
    digest = hashlib.sha256()
    for path in paths:
        for file in (path, *imports_beside(path).values()):
            digest.update(hashlib.sha256(text_of(file).encode()).digest())
    return digest.hexdigest()[:16]


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Return every name that may be an imported module, packages before what is in them."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            origin = resolve_name("." * node.level + (node.module or ""), package or None)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
