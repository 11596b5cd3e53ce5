"""Rows with one column cleaned, as a ``datasets.Dataset`` on disk: written batch by batch, named by its content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.core.optional import require
from anyformer.core.places import default_cache_dir
from anyformer.data.cleaning import Cleaner
from anyformer.data.corpus import encode_utf8
from anyformer.data.table import Row, Table, text_in
from anyformer.tokenization.columns import TextColumn

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 1 << 22  # of long texts fewer are written at a time
_PURPOSE = "a datasets.Dataset"


def rewritten_dataset(
    dataset: Any, column: TextColumn, cleaner: Cleaner, name: str, cache_dir: str | Path | None
) -> Any:
    """The dataset with its column cleaned; the same object where nothing changes. Types and features stay, but lists
    become texts."""
    arrow = require("pyarrow", purpose=_PURPOSE)
    schema = dataset.with_format("arrow")[:1].schema.with_metadata(dataset.data.schema.metadata)
    if column.nested:
        value = require("datasets", purpose=_PURPOSE).Value("string")
        schema = type(dataset.features)({**dataset.features, column.name: value}).arrow_schema
    place = schema.get_field_index(column.name)

    def batches() -> Iterator[Any]:
        done = 0
        for part in _parts(dataset):
            texts = part.column(column.name).to_pylist()
            results = [_cleaned(cleaner, text, name, f"row {done + i:,}", column) for i, text in enumerate(texts, 1)]
            done += len(texts)
            values = arrow.array(results, type=schema.field(place).type)
            kept = part.set_column(place, schema.field(place), values)
            yield kept.filter(arrow.array([text is not None for text in results]))

    return _written(batches(), schema, cleaner, name, cache_dir, unchanged=None if column.nested else dataset)


def rewritten_rows(
    table: Table, column: TextColumn, cleaner: Cleaner, cache_dir: str | Path | None
) -> tuple[Any, list[Finding]]:
    """A table's rows as a dataset, and what is worth knowing of its columns.

    Raises DataError, with the place, for a value that is not of its column's type, and where nothing is left.
    """
    arrow = require("pyarrow", purpose=_PURPOSE)
    types: dict[str, Any] = {}
    left_out: list[str] = []
    for name, values in table.columns.items():
        kind = arrow.string() if name == column.name else _type_of(arrow, values)
        if kind is None:
            left_out.append(name)
        else:
            types[name] = kind
    late: set[str] = set()

    def batches() -> Iterator[Any]:
        kept: list[tuple[str, Row]] = []
        size = 0
        for where, row in table.records():
            late.update(row.keys() - table.columns.keys())
            text = _cleaned(cleaner, row.get(column.name), table.name, where, column)
            if text is not None:
                kept.append((where, {**row, column.name: text}))
                size += len(text)
            if len(kept) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                yield arrow.table([_array(arrow, kept, *of, table.name) for of in types.items()], names=list(types))
                kept, size = [], 0
        yield arrow.table([_array(arrow, kept, *of, table.name) for of in types.items()], names=list(types))

    result = _written(batches(), arrow.schema(list(types.items())), cleaner, table.name, cache_dir)
    notes = []
    if left_out or late:
        names = ", ".join([*left_out, *sorted(late)])
        why = "empty, of mixed types, or not in the first rows"
        notes.append(Finding("columns left out", "note", names, reason=why))
    return result, notes


def _parts(dataset: Any) -> Iterator[Any]:
    """A dataset as arrow tables of a thousand rows, fewer where the rows are long."""
    for part in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        step = max(1, part.num_rows * _BATCH_CHARACTERS // max(1, part.nbytes))
        yield from (part.slice(start, step) for start in range(0, part.num_rows, step))


def _cleaned(cleaner: Cleaner, text: Any, name: str, where: str, column: TextColumn) -> str | None:
    result = cleaner(text_in(text, f"{name}, {where}: column {column.name!r}", column.nested))
    if result is not None:
        encode_utf8(result, f"{name}, {where}")
    return result


def _type_of(arrow: Any, values: list[Any]) -> Any:
    """The type of a column, from its first values; None where they have none, or several."""
    try:
        kind = arrow.array(values).type
    except (arrow.ArrowException, OverflowError):
        return None
    return None if arrow.types.is_null(kind) else kind


def _array(arrow: Any, rows: list[tuple[str, Row]], column: str, kind: Any, name: str) -> Any:
    try:
        return arrow.array([row.get(column) for _, row in rows], type=kind)
    except (arrow.ArrowException, OverflowError, TypeError):
        for where, row in rows:
            try:
                arrow.array([row.get(column)], type=kind)
            except (arrow.ArrowException, OverflowError, TypeError) as error:
                raise DataError(
                    f"{name}, {where}: column {column!r} holds {row[column]!r:.60}",
                    f"expected: {kind}, as in the first rows",
                    "make the values of the column alike, or remove it",
                ) from error
        raise


def _written(
    batches: Iterable[Any],
    schema: Any,
    cleaner: Cleaner,
    name: str,
    cache_dir: str | Path | None,
    unchanged: Any = None,
) -> Any:
    """The batches in a file named by the sha256 of its bytes; a file that is not whole never has such a name.

    unchanged: given back, where there is one and every text stayed as it was; then no file stays either.
    """
    arrow = require("pyarrow", purpose=_PURPOSE)
    datasets = require("datasets", purpose=_PURPOSE)
    folder = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir() / "datasets"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(prefix=".writing-", suffix=".arrow", dir=folder)
        os.close(handle)
        temporary = Path(made)
        with arrow.OSFile(made, "wb") as sink, arrow.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_table(batch.cast(schema) if batch.schema != schema else batch)
        if not cleaner.kept:
            raise DataError(
                f"nothing is left of {name}",
                "\n".join(f"{f.name}: {f.measured} {f.reason}".rstrip() for f in cleaner.findings()),
                "DatasetLoader(min_length=0) keeps short texts",
            )
        if unchanged is not None and cleaner.kept == cleaner.seen and not cleaner.changed:
            return unchanged
        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        final = folder / f"{digest[:32]}.arrow"
        os.replace(temporary, final)
        temporary = None
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name} could not be written to {folder}",
            str(error),
            "free some space, or "
            + ("set ANYFORMER_CACHE elsewhere" if cache_dir is None else "give another cache_dir, on a disk with room"),
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(final))
