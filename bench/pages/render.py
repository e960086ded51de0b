"""Layouts of a page: plain columns as nccl-tests prints them, Markdown, and rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bench.pages.tables import Page, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_LEFT = {"world", "kernel/variant", "form", "knobs", "launch", "figure"}
_GAP = "  "
#: A row is never wrapped, also where the terminal is narrower.
_WIDEST = 1000


def plain(page: Page) -> str:
    """Return the page as right-aligned columns; every line without data begins with `#`."""
    lines = [f"# {line}" for line in page.heading]
    for table in page.tables:
        lines += ["#", f"# {table.title}", *_plain_rows(table)]
        lines += [f"# {note}" for note in table.notes]
    lines += ["#", *(f"# {line}" for line in page.footer)]
    return "\n".join(lines) + "\n"


def markdown(page: Page) -> str:
    """Return the page as Markdown."""
    lines = [f"**{page.heading[0]}**", ""] if page.heading else []
    lines += [f"- {line}" for line in page.heading[1:]]
    for table in page.tables:
        lines += ["", f"**{table.title.replace('|', ',').replace(' ,', ',')}**", ""]
        if table.rows:
            columns = zip(table.names, table.units, strict=True)
            lines.append(_pipes(f"{name} {unit}".strip() for name, unit in columns))
            lines.append(_pipes(":---" if name in _LEFT else "---:" for name in table.names))
            lines += [_pipes(row) for row in table.rows]
            lines.append("")
        lines += [f"- {note}" for note in table.notes]
    lines += ["", *page.footer]
    return "\n".join(lines) + "\n"


def print_rich(page: Page, console: Console) -> None:
    """Print the page to a terminal, with rows whole also where it is narrow."""
    from rich.measure import Measurement
    from rich.text import Text

    tables = [_rich_table(table) for table in page.tables]
    unbounded = console.options.update(width=_WIDEST)
    widths = [Measurement.get(console, unbounded, table).maximum for table in tables]
    console.width = max(console.width, *widths, 1)
    for i, line in enumerate(page.heading):
        console.print(Text(line, style="bold yellow" if i == 0 else "dim"))
    for table, shown in zip(page.tables, tables, strict=True):
        console.print()
        console.print(Text(table.title, style="bold"), soft_wrap=True)
        if table.rows:
            console.print(shown)
        for note in table.notes:
            console.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    console.print()
    for line in page.footer:
        console.print(Text(line), soft_wrap=True)


def _rich_table(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, unit in zip(table.names, table.units, strict=True):
        header = Text(f"{name}\n{unit}")
        shown.add_column(header, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in table.rows:
        wrong = dict(zip(table.names, row, strict=True)).get("#wrong", "0") not in ("0", "N/A")
        shown.add_row(*(Text(cell) for cell in row), style="red" if wrong else None)
    return shown


def _plain_rows(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    names = table.names
    head = ["#" + names[0], *names[1:]]
    units = ["#", *table.units[1:]]
    rows = [[" " + row[0], *row[1:]] for row in table.rows]
    widths = [max(len(row[i]) for row in [head, units, *rows]) for i in range(len(names))]
    for row in (head, units, *rows):
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for cell, width, name in zip(row, widths, names, strict=True)
        )
        yield _GAP.join(cells).rstrip()


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
