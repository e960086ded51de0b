"""Layouts of a page: plain columns as nccl-tests prints them, Markdown, and rich tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.pages.table import COLUMNS, Block, Page

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LEFT = {"kernel/variant", "form", "knobs"}
_GAP = "  "
#: A row is never wrapped, also where the terminal is narrower.
_WIDEST = 1000


def plain(page: Page) -> str:
    """Return the page as right-aligned columns; every line without data begins with `#`."""
    lines = [f"# {line}" for line in page.heading]
    for block in page.blocks:
        lines += ["#", f"# {block.title}", *_plain_rows(block)]
        lines += [f"# {note}" for note in block.notes]
    lines += ["#", *(f"# {line}" for line in page.footer)]
    return "\n".join(lines) + "\n"


def markdown(page: Page) -> str:
    """Return the page as Markdown, one table per block."""
    lines = [f"**{page.heading[0]}**", ""] if page.heading else []
    lines += [f"- {line}" for line in page.heading[1:]]
    for block in page.blocks:
        names = _names(block)
        units = [block.units[i] for i in block.columns]
        lines += ["", f"**{block.title.replace('|', ',').replace(' ,', ',')}**", ""]
        if block.rows:
            lines.append(
                _pipes(f"{name} {unit}".strip() for name, unit in zip(names, units, strict=True))
            )
            lines.append(_pipes(":---" if name in _LEFT else "---:" for name in names))
            lines += [_pipes(row[i] for i in block.columns) for row in block.rows]
            lines.append("")
        lines += [f"- {note}" for note in block.notes]
    lines += ["", *page.footer]
    return "\n".join(lines) + "\n"


def print_rich(page: Page, console: Console) -> None:
    """Print the page to a terminal, with rows whole also where it is narrow."""
    from rich.measure import Measurement
    from rich.text import Text

    tables = [_table(block) for block in page.blocks]
    unbounded = console.options.update(width=_WIDEST)
    widths = [Measurement.get(console, unbounded, table).maximum for table in tables]
    console.width = max(console.width, *widths, 1)
    for i, line in enumerate(page.heading):
        console.print(Text(line, style="bold yellow" if i == 0 else "dim"))
    for block, table in zip(page.blocks, tables, strict=True):
        console.print()
        console.print(Text(block.title, style="bold"), soft_wrap=True)
        if block.rows:
            console.print(table)
        for note in block.notes:
            console.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    console.print()
    for line in page.footer:
        console.print(Text(line), soft_wrap=True)


def _table(block: Block) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in zip(block.columns, _names(block), strict=True):
        header = Text(f"{name}\n{block.units[i]}")
        table.add_column(header, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in block.rows:
        wrong = row[COLUMNS.index("#wrong")] not in ("0", "N/A")
        table.add_row(*(Text(row[i]) for i in block.columns), style="red" if wrong else None)
    return table


def _names(block: Block) -> list[str]:
    return [COLUMNS[i] for i in block.columns]


def _plain_rows(block: Block) -> Iterator[str]:
    if not block.rows:
        return
    names = _names(block)
    head = ["#" + names[0], *names[1:]]
    units = ["#", *(block.units[i] for i in block.columns[1:])]
    rows = [
        [" " + row[block.columns[0]], *(row[i] for i in block.columns[1:])] for row in block.rows
    ]
    widths = [max(len(row[i]) for row in [head, units, *rows]) for i in range(len(names))]
    for row in (head, units, *rows):
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for cell, width, name in zip(row, widths, names, strict=True)
        )
        yield _GAP.join(cells).rstrip()


def _pipes(cells: Iterator[str] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
