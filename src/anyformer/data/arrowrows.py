"""Rows of .parquet and .arrow files, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError
from anyformer.core.optional import require
from anyformer.data.compressed import is_packed, open_bytes, open_seekable
from anyformer.data.table import SAMPLE_ROWS, Row, Table

_BATCH_ROWS = 1024
_FILE_MAGIC = b"ARROW1"  # of the format with a table of contents; the streaming one has none


def parquet_table(path: Path) -> Table:
    """The table of a .parquet file. DataError where it is none, or is damaged."""

    def batches(columns: list[str] | None) -> Iterator[Any]:
        parquet = require("pyarrow.parquet", purpose="reading .parquet")
        # not through datasets: a parquet stream of its that is left half-read may abort the process at its end (#7566)
        with _told(path, "a parquet"), open_seekable(path) as source, parquet.ParquetFile(source) as file:
            if columns is None:
                columns = list(file.schema_arrow.names)
                yield file.schema_arrow
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)

    return _table(path, batches)


def arrow_table(path: Path) -> Table:
    """The table of a .arrow file, as datasets and feather write them. DataError where it is none, or is damaged."""

    def batches(columns: list[str] | None) -> Iterator[Any]:
        ipc = require("pyarrow.ipc", purpose="reading .arrow")
        with _told(path, "an arrow"), _arrow_source(path) as (source, is_file):
            reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
            if columns is None:
                yield reader.schema
            parts = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            for part in parts:
                for start in range(0, part.num_rows, _BATCH_ROWS):
                    batch = part.slice(start, _BATCH_ROWS)
                    yield batch if columns is None else batch.select(columns)

    return _table(path, batches)


@contextmanager
def _arrow_source(path: Path) -> Iterator[tuple[Any, bool]]:
    arrow = require("pyarrow", purpose="reading .arrow")
    with open_bytes(path) as stream:
        is_file = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    if not is_packed(path):
        with arrow.memory_map(str(path)) as source:
            yield source, is_file
    elif is_file:
        with open_seekable(path) as copy:
            yield copy, True
    else:
        with open_bytes(path) as stream:
            yield stream, False


@contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Errors of the library as ours."""
    arrow = require("pyarrow", purpose=f"reading {path.suffix}")
    try:
        yield
    except DataError:
        raise
    except (arrow.ArrowException, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{path.name} is not {kind} file, or is damaged", lines[0], "fetch or write it again"
        ) from error


def _table(path: Path, batches: Any) -> Table:
    """batches(None) gives the schema and then whole batches, batches([column]) that column's."""
    whole = batches(None)
    schema = next(whole)
    names = list(schema.names)
    if len(set(names)) < len(names):
        raise DataError(f"{path.name} has two columns of one name", f"columns: {', '.join(names)}")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch in whole:
        for name in names:
            columns[name] += batch.column(name).slice(0, SAMPLE_ROWS - len(columns[name])).to_pylist()
        if not names or len(columns[names[0]]) >= SAMPLE_ROWS:
            break
    whole.close()

    def records() -> Iterator[tuple[str, Row]]:
        number = 0
        rows = batches(None)
        next(rows)
        for batch in rows:
            for row in batch.to_pylist():
                number += 1
                yield f"row {number:,}", row

    def cells(column: str) -> Iterator[tuple[str, Any]]:
        number = 0
        for batch in batches([column]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield f"row {number:,}", value

    return Table(path.name, columns, records, cells=cells)
