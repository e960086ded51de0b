"""What Numba says of a kernel that does not compile, in one sentence with the kernel's line."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core.errors import NumbaError, UnsupportedBytecodeError

from comms.errors import UsageError
from comms.sources import imports_beside

#: Where Numba was, innermost first: `at FILE (LINE)`, `Raised from FILE (LINE)`, `File "FILE", line
#: LINE`.
_PLACE = re.compile(
    r"(?:\b(?:defined )?at|\bRaised from) (?P<file>\S[^\n]*?) \((?P<line>\d+)\)"
    r'|\bFile "(?P<shown>[^"]+)", line (?P<shown_line>\d+)'
)
_SIGNATURE = re.compile(r">>> (?P<call>.*)")


@contextmanager
def telling_compile_errors(
    kernel: Callable[..., Any], path: Path, entry_line: int
) -> Iterator[None]:
    """Turn what Numba raises into one sentence.

    Args:
        kernel: what is compiled.
        path: its file.
        entry_line: line of that file that Numba reports for the call of the kernel itself.

    Raises:
        UsageError: the kernel does not compile.
    """
    try:
        yield
    except (NumbaError, UnsupportedBytecodeError) as error:
        text = str(error)
        own = {os.path.abspath(file) for file in (path, *imports_beside(path).values())}
        places = [
            (os.path.abspath(match["file"] or match["shown"]), match["line"] or match["shown_line"])
            for match in _PLACE.finditer(text)
        ]
        inside = [place for place in places if place[0] in own]
        while inside and inside[-1] == (os.path.abspath(path), str(entry_line)):
            inside.pop()
        file, line = inside[0] if inside else (str(path), kernel.__code__.co_firstlineno)
        # Where an instruction could not be typed, its own insides are no help.
        where = " in an instruction" if places[:1] != inside[:1] and inside else ""
        raise UsageError(
            f"{_shown(file, path)}:{line}: kernel {kernel.__name__} does not compile{where}: "
            f"{_first_line(text)}"
        ) from error


def _first_line(text: str) -> str:
    """Return the line that says what is wrong, with the call that fits nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Failed in nopython mode pipeline")]
    call = _SIGNATURE.search(text)
    if told and told[0].endswith("found for signature:") and call:
        return f"{told[0]} {call['call']}"
    said = _PLACE.sub("", told[0]) if told else "no reason given"
    return said.replace("Raised from None", "").strip(" .,")


def _shown(file: str, path: Path) -> str:
    """Return a file as a user would write it: beside the kernel's as that was given."""
    return str(path) if os.path.abspath(file) == os.path.abspath(path) else os.path.relpath(file)
