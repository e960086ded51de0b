"""Tables of text cells: what every page consists of, whatever it is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text cells under one title.

    Attributes:
        names: name of each column.
        units: its unit, empty where it has none.
        rows: cells, one for each column.
        notes: sentences below the rows.
    """

    title: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


class Page(Protocol):
    """What is printed: lines, tables, lines."""

    @property
    def heading(self) -> Sequence[str]:
        """Lines above the tables."""

    @property
    def tables(self) -> Sequence[Table]:
        """The tables, in order."""

    @property
    def footer(self) -> Sequence[str]:
        """Lines below the tables."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page that has nothing but its text."""

    heading: tuple[str, ...]
    tables: tuple[Table, ...]
    footer: tuple[str, ...] = ()
