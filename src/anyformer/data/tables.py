"""Rows of tables of every kind, one at a time, and which of their columns is the text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError
from anyformer.data.arrowrows import arrow_table, parquet_table
from anyformer.data.compressed import is_packed, kind_of
from anyformer.data.delimited import delimited_table
from anyformer.data.jsonrows import json_lines_table, json_table
from anyformer.data.table import SAMPLE_ROWS, Row, Table, text_in
from anyformer.tokenization.cells import described, way_out
from anyformer.tokenization.columns import TextColumn, asked_column, is_text, pick_column

_NAME_IT = "name the column: text_column (--text_column NAME)"
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def is_table(path: Path) -> bool:
    """Whether the file's name, without .gz and .zst, is a table's."""
    return kind_of(path) in TABLE_SUFFIXES


def open_table(path: Path, kind: str = "") -> Table:
    """The table in a file. kind: read it as this suffix says, instead of its own. DataError where that is not so."""
    kind = kind or kind_of(path)
    if kind == ".parquet":
        table = parquet_table(path)
    elif kind == ".arrow":
        table = arrow_table(path)
    elif kind == ".jsonl":
        table = json_lines_table(path)
    elif kind == ".json":
        table = json_table(path)
    else:
        table = delimited_table(path, tabs=kind == ".tsv")
    return replace(table, path=path)


def choose_column(table: Table, asked: str | None, without: str | None = None) -> TextColumn:
    """The column that holds the text: as asked, else by name, else by type; and the finding that says why.

    without: a column that is taken for something else. Raises DataError for a column that is not there or holds no
    text.
    """
    names = list(table.columns)
    listing = f"columns: {', '.join(names) or 'none'}"
    if asked is not None:
        if asked not in names:
            raise DataError(f"{table.name} has no column {asked!r}", listing, _NAME_IT)
        if not is_text(table.columns[asked]):
            texts = [name for name in names if is_text(table.columns[name]) and name != without]
            example = next((v for v in table.columns[asked] if v is not None and v != ""), None)
            fix = _NAME_IT.replace("NAME", texts[0] if len(texts) == 1 else "NAME")
            raise DataError(
                f"column {asked!r} of {table.name} holds no text, but {example!r:.60}",
                described(table.columns),
                fix if texts else _made_of(table, {asked: table.columns[asked]}),
            )
        return asked_column(asked, table.columns[asked])
    if (picked := pick_column(table.columns, without)) is not None:
        return picked
    if not any(table.columns.values()):
        raise DataError(f"{table.name} is empty: it has no rows", listing, "give data with rows in it")
    raise DataError(
        f"{table.name} has no column with text",
        described(table.columns),
        _made_of(table, {name: values for name, values in table.columns.items() if name != without}),
    )


def table_texts(table: Table, column: TextColumn) -> Iterator[str]:
    """The texts of one column, an empty one for a missing one. DataError, with the place, for what is no text."""
    for where, value in table.rows(column.name):
        yield text_in(value, f"{table.name}, {where}: column {column.name!r}", column.nested)


def _made_of(table: Table, columns: Mapping[str, Sequence[Any]]) -> str:
    """How texts are made of a table that has none, in one line where they can be."""
    made = way_out(columns)
    if made is None:
        return "give the text itself: a table with a column of text, or a text file"
    column, expression = made
    if table.path is None:
        return f"make texts of it, in Python: [{expression} for v in (row[{column!r}] for row in data)]"
    path = table.path
    inner = path.with_suffix("") if is_packed(path) else path
    new = inner.with_name(f"{inner.stem}.texts.jsonl")
    script = (
        "import json, pathlib; from anyformer.data.tables import open_table; "
        f"[print(json.dumps({{'text': {expression}}})) "
        f"for _, v in open_table(pathlib.Path({str(path)!r})).rows({column!r}) if v]"
    )
    quoted = shlex.quote(script) if any(sign in script for sign in '"$`!') else f'"{script}"'
    return f"make a table of texts: python -c {quoted} > {shlex.quote(str(new))}"


# --- datasets -------------------------------------------------------------------------------------------------------


def as_columns(data: Any) -> Any:
    """A list of dicts (None where one lacks a value) or a pandas DataFrame as a dict of lists; texts in a list, array,
    Series or column of a Dataset as its one column "text". Anything else as it is."""
    if isinstance(data, list | tuple):
        if all(isinstance(row, str) for row in data):
            return {"text": data}
        if all(isinstance(row, Mapping) for row in data):
            names = list(dict.fromkeys(str(key) for row in data for key in row))
            return {name: [row.get(name) for row in data] for name in names}
        return data
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return data.to_dict("list")
    if hasattr(data, "tolist"):
        return {"text": data.tolist()}
    return {"text": data} if isinstance(data, Sequence) and not isinstance(data, str | bytes) else data


def dataset_table(dataset: Any, name: str) -> Table:
    """A ``datasets.Dataset`` (or anything with ``column_names`` that iterates over dicts), or what ``as_columns`` makes
    a dict of lists. DataError for anything else."""
    dataset = as_columns(dataset)
    if isinstance(dataset, Mapping) and dataset and all(hasattr(part, "column_names") for part in dataset.values()):
        parts = ", ".join(map(str, dataset))
        part = "train" if "train" in dataset else next(iter(dataset))
        raise DataError(f"{name} has parts: {parts}", fix=f"give one of them: dataset[{part!r}]")
    if not isinstance(dataset, Mapping) and not hasattr(dataset, "column_names"):
        raise DataError(
            f"{name} is {dataset!r:.60} ({type(dataset).__name__})",
            fix="give a datasets.Dataset, a dict of lists, or a list of texts",
        )
    if isinstance(dataset, Mapping):
        lengths = {str(key): len(values) for key, values in dataset.items() if hasattr(values, "__len__")}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
            raise DataError(f"the columns of {name} have different lengths", f"rows: {shown}")
        columns = {str(key): list(islice(values, SAMPLE_ROWS)) for key, values in dataset.items()}

        def values(column: str) -> Iterator[tuple[str, Any]]:
            return ((f"row {number:,}", value) for number, value in enumerate(dataset[column], start=1))

        def whole() -> Iterator[tuple[str, Row]]:
            for number, row in enumerate(zip(*dataset.values(), strict=True), start=1):
                yield f"row {number:,}", dict(zip(columns, row, strict=True))

        return Table(name, columns, whole, cells=values)
    sample = list(islice(iter(dataset), SAMPLE_ROWS))
    names = list(dataset.column_names or (sample[0] if sample else ()))

    def records() -> Iterator[tuple[str, Row]]:
        return ((f"row {number:,}", row) for number, row in enumerate(dataset, start=1))

    def cells(column: str) -> Iterator[tuple[str, Any]]:
        narrow = dataset.select_columns([column]) if hasattr(dataset, "select_columns") else dataset
        return ((f"row {number:,}", row[column]) for number, row in enumerate(narrow, start=1))

    return Table(name, {key: [row.get(key) for row in sample] for key in names}, records, cells=cells)
