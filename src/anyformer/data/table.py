"""What a table is to the rest of the house: named columns, and rows that can be read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.tokenization.cells import cell_text

SAMPLE_ROWS = 100
"""Rows that are looked at to tell what the columns hold."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of named columns; nothing is held in memory but the first ones."""

    name: str
    columns: dict[str, list[Any]]
    """Each column with its values in the first rows."""
    records: Callable[[], Iterator[tuple[str, Row]]]
    """(where it stands, the whole row), from the first one on."""
    notes: tuple[Finding, ...] = ()
    cells: Callable[[str], Iterator[tuple[str, Any]]] | None = None
    """The same for one column, where that is less work."""
    path: Path | None = None
    """The file it is in."""

    def rows(self, column: str) -> Iterator[tuple[str, Any]]:
        """(where it stands, value) of one column. DataError for a table without it, or, with the place, a row."""
        if self.cells is None:
            return self._picked(column)
        if column not in self.columns:  # it was chosen by another part of the same table
            raise DataError(f"{self.name} has no column {column!r}", f"columns: {', '.join(self.columns) or 'none'}")
        return self.cells(column)

    def _picked(self, column: str) -> Iterator[tuple[str, Any]]:
        for where, row in self.records():
            if column not in row:
                raise DataError(
                    f"{self.name}, {where} has no {column!r}",
                    f"it has {', '.join(row) or 'nothing'}",
                    "give the row that column, or remove it",
                )
            yield where, row[column]


def text_in(value: Any, where: str, nested: bool = False) -> str:
    """The text of a cell, as ``cell_text`` reads it, empty for a missing one; DataError for what is no text.

    where: table, place and column. nested: whether the column was chosen as one of lists.
    """
    text = cell_text(value, nested)
    if text is None:
        other = "the column holds lists of strings, or of messages with role and content" if nested else ""
        raise DataError(f"{where} holds {value!r:.60}, not text", other, "mend the row, or remove it")
    return text
