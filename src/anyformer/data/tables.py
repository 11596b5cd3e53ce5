"""Rows of .jsonl, .csv, .tsv and .parquet files, one at a time, and which of their columns is the text."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.core.optional import require
from anyformer.data.reading import decode_text

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
# Names under which datasets of text keep it, likeliest first.
_TEXT_NAMES = ("text", "content", "body", "document", "sentence", "article", "story", "passage", "review", "code")
_SAMPLE_ROWS = 100
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Table:
    """Rows that can be read again and again; ``rows(column)`` gives (where it stands, value) pairs."""

    name: str
    columns: dict[str, list[Any]]
    """Each column with its values in the first rows."""
    rows: Callable[[str], Iterator[tuple[str, Any]]]
    notes: tuple[Finding, ...] = ()


def open_table(path: Path) -> Table:
    """The table in a file. Raises DataError where it cannot be read as what its suffix says."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    if path.suffix.lower() == ".jsonl":
        return _jsonl(path)
    return _delimited(path)


def choose_column(table: Table, asked: str | None) -> tuple[str, Finding]:
    """The column that holds the text: as asked, else by name, else by type; and the finding that says why.

    Raises DataError for a column that is not there or holds no text.
    """
    names = list(table.columns)
    texts = [name for name in names if _is_text(table.columns[name])]
    listing = f"columns: {', '.join(names) or 'none'}"
    if asked is not None:
        if asked not in names:
            raise DataError(f"{table.name} has no column {asked!r}", listing, "--text_column NAME")
        if asked not in texts:
            example = next((v for v in table.columns[asked] if v is not None and v != ""), None)
            raise DataError(f"column {asked!r} of {table.name} holds no text, but {example!r:.60}", listing)
        return asked, Finding("text column", "note", asked, "", "asked for")
    by_name = {name.lower(): name for name in reversed(texts)}
    for known in _TEXT_NAMES:
        if known in by_name:
            return by_name[known], Finding("text column", "note", by_name[known], "", f"by its name; {listing}")
    if not texts:
        raise DataError(f"{table.name} has no column with text", listing, "--text_column NAME")
    lengths = {name: _mean_length(table.columns[name]) for name in texts}
    best = max(texts, key=lambda name: lengths[name])
    reason = "the only one that holds text" if len(texts) == 1 else f"the longest texts; {listing}"
    return best, Finding("text column", "note", best, "", reason)


def table_texts(table: Table, column: str) -> Iterator[str]:
    """The texts of one column; empty ones are left out. DataError, with the place, for a value that is no text."""
    for where, value in table.rows(column):
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise DataError(f"{table.name}, {where}: column {column!r} holds {value!r:.60}, not text")
        yield value


def _is_text(values: list[Any]) -> bool:
    """Whether a column's sample is text: strings, not all of them numbers."""
    seen = [value for value in values if value is not None and value != ""]
    return bool(seen) and all(isinstance(v, str) for v in seen) and not all(_is_number(v) for v in seen)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _mean_length(values: list[Any]) -> float:
    return sum(len(v) for v in values if isinstance(v, str)) / max(1, len(values))


# --- JSON lines ---------------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Table:
    columns: dict[str, list[Any]] = {}
    for _, row in islice(_json_rows(path), _SAMPLE_ROWS):
        for key, value in row.items():
            columns.setdefault(key, []).append(value)

    def rows(column: str) -> Iterator[tuple[str, Any]]:
        for line, row in _json_rows(path):
            if column not in row:
                raise DataError(
                    f"{path.name}, line {line:,} has no {column!r}", f"it has {', '.join(row) or 'nothing'}"
                )
            yield f"line {line:,}", row[column]

    return Table(path.name, columns, rows)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    offset = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw[3:] if number == 1 and raw.startswith(b"\xef\xbb\xbf") else raw
            text = decode_text(line, path.name, offset + len(raw) - len(line))
            offset += len(raw)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                cut = "the line is cut off" if error.pos >= len(text.rstrip()) else error.msg
                raise DataError(
                    f"{path.name}, line {number:,} is not valid JSON",
                    detail=f"{cut}, at character {error.pos + 1:,}: …{text.rstrip()[-40:]}",
                    fix="mend or remove the line",
                ) from error
            except RecursionError as error:
                raise DataError(f"{path.name}, line {number:,} is nested too deep") from error
            if not isinstance(row, dict):
                raise DataError(f"{path.name}, line {number:,} is a {type(row).__name__}, not an object with columns")
            yield number, row


# --- comma- and tab-separated -------------------------------------------------------------------------------------


def _delimited(path: Path) -> Table:
    first = next(_cells(path), None)
    if first is None:
        raise DataError(f"{path.name} is empty")
    sample = [cells for _, cells in islice(_cells(path), 1, 1 + _SAMPLE_ROWS)]
    names = first[1]
    # a heading is never a number: where one stands above numbers, the file has no headings
    headless = any(
        _is_number(name) and column and all(_is_number(v) for v in column)
        for name, column in zip(names, zip(*sample, strict=True) if sample else [[]] * len(names), strict=True)
    )
    notes: tuple[Finding, ...] = ()
    if headless:
        sample = [names, *sample]
        names = [f"column {number}" for number in range(1, len(names) + 1)]
        reason = "its first line holds a number above numbers"
        notes = (Finding("headings", "note", f"{path.name} has none", "", reason),)
    columns = {name: [cells[index] for cells in sample] for index, name in enumerate(names)}
    if len(columns) < len(names):
        raise DataError(f"{path.name} has two columns of one name", f"columns: {', '.join(names)}")

    def rows(column: str) -> Iterator[tuple[str, Any]]:
        index = names.index(column)
        for line, cells in islice(_cells(path), 0 if headless else 1, None):
            yield f"line {line:,}", cells[index]

    return Table(path.name, columns, rows, notes)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row; all rows as wide as the first. Tab-separated files have no quoting (IANA)."""
    tabs = path.suffix.lower() == ".tsv"
    csv.field_size_limit(2**31 - 1)  # the module's own limit is 128 kB a cell
    with path.open("rb") as stream:
        lines = _decoded_lines(stream, path.name)
        reader = csv.reader(
            lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        )
        width: int | None = None
        while True:
            begin = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path.name}, line {begin:,} cannot be read", detail=str(error)) from error
            if cells is None:
                return
            if not cells:
                continue
            if width is None:
                width = len(cells)
            if len(cells) != width:
                raise DataError(
                    f"{path.name}, line {begin:,} has {len(cells)} cells; the first line has {width}",
                    fix='quote cells that hold the separator ("a, b"), or save as .jsonl',
                )
            yield begin, cells


def _decoded_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    offset = 0
    for number, raw in enumerate(stream):
        skip = 3 if number == 0 and raw.startswith(b"\xef\xbb\xbf") else 0
        yield decode_text(raw[skip:], name, offset + skip)
        offset += len(raw)


# --- parquet and datasets -----------------------------------------------------------------------------------------


def _parquet(path: Path) -> Table:
    parquet = require("pyarrow.parquet", purpose="reading .parquet")
    arrow = require("pyarrow", purpose="reading .parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            first = next(file.iter_batches(batch_size=_SAMPLE_ROWS), None)
            columns = {name: first.column(name).to_pylist() if first is not None else [] for name in names}
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a parquet file", detail=str(error).splitlines()[0]) from error

    def rows(column: str) -> Iterator[tuple[str, Any]]:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"row {number:,}", value

    return Table(path.name, columns, rows)


def dataset_table(dataset: Any, name: str) -> Table:
    """A ``datasets.Dataset`` (or anything with ``column_names`` that iterates over dicts), or a dict of lists."""
    if isinstance(dataset, Mapping):
        columns = {str(key): list(islice(values, _SAMPLE_ROWS)) for key, values in dataset.items()}

        def cells(column: str) -> Iterator[tuple[str, Any]]:
            return ((f"row {number:,}", value) for number, value in enumerate(dataset[column], start=1))

        return Table(name, columns, cells)
    sample = list(islice(iter(dataset), _SAMPLE_ROWS))
    names = list(dataset.column_names or (sample[0] if sample else ()))

    def rows(column: str) -> Iterator[tuple[str, Any]]:
        narrow = dataset.select_columns([column]) if hasattr(dataset, "select_columns") else dataset
        return ((f"row {number:,}", row[column]) for number, row in enumerate(narrow, start=1))

    return Table(name, {key: [row.get(key) for row in sample] for key in names}, rows)
