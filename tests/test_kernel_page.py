"""The page for kernel developers shows the example's file, and its commands print what it shows."""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cli import main
from kernels.devices.base import Device, user_regions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "kernels" / "README.md").read_text()
EXAMPLE = (ROOT / "kernels" / "examples" / "segments.py").read_text()
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A command of the page, the edit before it, and the lines that it is said to print."""

    edit: str
    command: str
    lines: tuple[str, ...]


def _shown() -> list[Shown]:
    found = []
    edit = ""
    for language, text in _BLOCK.findall(PAGE):
        if language == "diff":
            edit = text
        elif language == "console":
            lines = text.splitlines()
            (command,) = [line[2:] for line in lines if line.startswith("$ epbench ")]
            rest = tuple(line for line in lines if line != "..." and not line.startswith("$ "))
            found.append(Shown(edit, command, rest))
    return found


def edited(edit: str) -> str:
    """Return the example after an edit, whose old lines must occur once."""
    if not edit:
        return EXAMPLE
    lines = edit.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if not line.startswith("+"))
    new = "".join(line[1:] for line in lines if not line.startswith("-"))
    assert EXAMPLE.count(old) == 1, old
    return EXAMPLE.replace(old, new)


def test_the_page_shows_the_file_as_it_is() -> None:
    assert [text for language, text in _BLOCK.findall(PAGE) if language == "python"] == [EXAMPLE]
    assert EXAMPLE.count("\n") < 80


@pytest.mark.parametrize(
    ("shown", "code"), list(zip(_shown(), (0, 7, 7, 4), strict=True)), ids=["0", "7a", "7b", "4"]
)
def test_commands_print_what_the_page_shows(
    shown: Shown, code: int, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(edited(shown.edit))
    assert main(shown.command.split()[1:]) == code
    printed = iter(capsys.readouterr().out.splitlines())
    missing = [line for line in shown.lines if line not in printed]
    assert missing == []


def test_the_page_names_every_parameter_and_region() -> None:
    names = re.findall(r'^            "(\w+)":', inspect.getsource(Device._params), re.MULTILINE)
    regions = re.findall(r'^        "(\w+)":', inspect.getsource(user_regions), re.MULTILINE)
    assert len(names) > 10
    assert len(regions) > 5
    assert [name for name in (*names, *regions) if f"`{name}`" not in PAGE] == []
