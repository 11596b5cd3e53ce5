"""DatasetLoader of the API reference: text from the hub, a file or Drive, cleaned, as a ``datasets.Dataset``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from anyformer.core.errors import DataError, DataNotFound, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import PlainView, percent, printable
from anyformer.data.cleaning import Cleaner
from anyformer.data.compressed import kind_of
from anyformer.data.corpus import PYTHON_STDLIB, encode_utf8, is_glob, open_corpus, require_path
from anyformer.data.hub import PREFIX, hub_dataset, named_reference
from anyformer.data.quality import QualityCounter
from anyformer.data.reading import SingleText
from anyformer.data.rewrite import rewritten_dataset, rewritten_rows
from anyformer.data.table import Table
from anyformer.data.tables import TABLE_SUFFIXES, choose_column, dataset_table, open_table, table_texts
from anyformer.tokenization.columns import asked_column

FileFormat = Literal["txt", "md", "json", "jsonl", "csv", "tsv", "parquet", "arrow"]
DRIVE = Path("/content/drive")
"""Where Colab mounts Google Drive."""
_ROW_CHARACTERS = 64 * 1024  # a longer line or paragraph goes on in the next row: no line can fill the memory
_PARAGRAPHS = 10  # blank-line separated parts in the first 64 KB from which a text is read by paragraphs
_PREVIEW = 200  # characters shown of a sample


class DatasetLoader:
    """Loads text from the hub, a local file or Google Drive.

    preprocessing: clean each text (line ends, control characters, spaces at line ends, blank lines beyond one, white
    space around it). min_length: leave out texts of fewer characters; 0 keeps empty rows where preprocessing is False,
    which else leaves them out. max_length: cut texts to this many characters.
    remove_duplicates: keep the first of equal texts (about 100 bytes of memory a text).
    cache_dir: where results that differ from their source are written; $ANYFORMER_CACHE/datasets where not given.
    ``findings`` holds what was chosen and left out in the last load; it is shown, too.
    """

    def __init__(
        self,
        preprocessing: bool = True,
        min_length: int = 10,
        max_length: int | None = None,
        remove_duplicates: bool = False,
        *,
        cache_dir: str | Path | None = None,
        view: View | None = None,
    ) -> None:
        lengths = (min_length, 0 if max_length is None else max_length)
        switches = (preprocessing, remove_duplicates)
        if not all(isinstance(length, int) for length in lengths) or not all(isinstance(s, bool) for s in switches):
            raise SettingsError(
                f"preprocessing {preprocessing!r}, min_length {min_length!r}, max_length {max_length!r}, "
                f"remove_duplicates {remove_duplicates!r} cannot be used",
                "expected: True or False, and whole numbers",
            )
        if min_length < 0 or (max_length is not None and max_length < max(1, min_length)):
            raise SettingsError(
                f"min_length {min_length}, max_length {max_length} leave no text",
                "expected: 0 or more, and a max_length that is not below it",
            )
        self.preprocessing = preprocessing
        self.min_length = min_length
        self.max_length = max_length
        self.remove_duplicates = remove_duplicates
        self.findings: tuple[Finding, ...] = ()
        self._cache_dir = cache_dir
        self._view = view or PlainView()

    def load_huggingface(
        self,
        dataset_name: str,
        config_name: str | None = None,
        split: str = "train",
        *,
        text_column: str | None = None,
    ) -> Any:
        """One split of a dataset on the hub, with all its columns, as a ``datasets.Dataset``.

        config_name: a known name gets its usual configuration where none is given, which is said.
        Raises DataNotFound where the hub does not give it, DataError where it has no text.
        """
        if not isinstance(dataset_name, str) or Path(dataset_name).is_file():
            raise DataError(
                f"{dataset_name!r:.200} is no name of a dataset on the hub", fix="load_local_file reads files"
            )
        reference = named_reference(dataset_name, config_name, split)
        dataset, notes = hub_dataset(reference)
        column = choose_column(dataset_table(dataset, reference.name), text_column)
        cleaner = self._cleaner()
        result = rewritten_dataset(dataset, column, cleaner, reference.name, self._cache_dir)
        self._tell([*notes, column.finding, *cleaner.findings()])
        return result

    def load_local_file(
        self, file_path: str | Path, file_format: FileFormat | None = None, text_column: str | None = None
    ) -> Any:
        """A file, folder or glob as a ``datasets.Dataset``.

        A table keeps its columns. Plain text becomes one column ``text_column`` ("text"): a row is a paragraph where
        blank lines part the text, else a line; of several files, a row is a file.
        "python-stdlib": the sources of this Python. file_format: read the file as this, whatever its name says. Raises
        DataNotFound, DataError, SettingsError for a format that is not known.
        """
        if not isinstance(file_path, str | os.PathLike):
            raise DataError(
                f"file_path is {file_path!r:.60} ({type(file_path).__name__})", fix="give the path of a file"
            )
        given = os.fspath(file_path)
        kind = _suffix(file_format)
        if given.startswith(PREFIX):
            raise DataNotFound(
                f"{given} is a dataset on the hub, not a file", fix="load_huggingface(name, config) reads it"
            )
        path = Path(given) if is_glob(given) or given == PYTHON_STDLIB else require_path(given)
        cleaner = self._cleaner()
        if path.is_file() and (kind or kind_of(path)) in TABLE_SUFFIXES:
            table = open_table(path, kind)
            column = choose_column(table, text_column)
            notes = [*table.notes, column.finding]
        else:
            column = asked_column(text_column or "text", ())
            table, notes = _plain_table(path, column.name, as_text=bool(kind))
        result, more = rewritten_rows(table, column, cleaner, self._cache_dir)
        self._tell([*notes, *more, *cleaner.findings()])
        return result

    def load_from_drive(self, drive_path: str | Path, text_column: str | None = None) -> Any:
        """A file on Google Drive, by its whole path or the one below MyDrive, as ``load_local_file`` reads it.

        Raises DataNotFound where Drive is not mounted, or holds no such file.
        """
        return self.load_local_file(on_drive(Path(drive_path)), text_column=text_column)

    def get_statistics(self, dataset: Any, text_column: str | None = None) -> dict[str, Any]:
        """num_samples, total_chars, total_words (parts between white space), avg_, min_, max_ and median_chars,
        avg_words, columns, text_column; and empty, short, duplicates (an estimate beyond a million different texts), of
        which each text counts as the first that applies."""
        table = dataset_table(dataset, "the dataset")
        column = choose_column(table, text_column)
        lengths: list[int] = []
        words = 0
        counter = QualityCounter()
        for text in table_texts(table, column):
            lengths.append(len(text))
            words += len(text.split())
            counter.add_text(encode_utf8(text, table.name), text)
        quality = counter.result()
        rows = max(1, len(lengths))
        return {
            "num_samples": len(lengths),
            "total_chars": sum(lengths),
            "total_words": words,
            "avg_chars": sum(lengths) / rows,
            "avg_words": words / rows,
            "min_chars": min(lengths, default=0),
            "max_chars": max(lengths, default=0),
            "median_chars": float(median(lengths)) if lengths else 0.0,
            "empty": quality.empty,
            "short": quality.short,
            "duplicates": quality.duplicate,
            "columns": list(table.columns),
            "text_column": column.name,
        }

    def print_statistics(self, dataset: Any, text_column: str | None = None) -> None:
        """``get_statistics`` in a few lines on stdout."""
        of = self.get_statistics(dataset, text_column)
        rows = max(1, of["num_samples"])
        print(f"samples      {of['num_samples']:,}   (column {of['text_column']!r} of {', '.join(of['columns'])})")
        print(f"characters   {of['total_chars']:,}   words {of['total_words']:,}")
        print(
            f"length       {of['avg_chars']:,.0f} characters on average, median {of['median_chars']:,.0f},"
            f" from {of['min_chars']:,} to {of['max_chars']:,}"
        )
        shares = ((word, of[word]) for word in ("empty", "short", "duplicates"))
        print("faults       " + ", ".join(f"{word} {count:,} ({percent(count / rows)})" for word, count in shares))

    def preview_samples(self, dataset: Any, num_samples: int = 3, text_column: str | None = None) -> None:
        """The first samples on stdout, each cut to 200 characters."""
        if num_samples < 1:
            raise SettingsError(f"num_samples is {num_samples}; it must be at least 1")
        table = dataset_table(dataset, "the dataset")
        column = choose_column(table, text_column)
        for number, text in enumerate(islice(table_texts(table, column), num_samples), start=1):
            more = f" … ({len(text):,} characters)" if len(text) > _PREVIEW else ""
            print(f"--- sample {number} ---\n{printable(text[:_PREVIEW])}{more}")

    def _cleaner(self) -> Cleaner:
        return Cleaner(self.preprocessing, self.min_length, self.max_length, self.remove_duplicates)

    def _tell(self, findings: list[Finding]) -> None:
        self.findings = tuple(findings)
        for finding in findings:
            self._view.finding(finding)


def _suffix(file_format: str | None) -> str:
    """The format as a file's ending; empty where none is given."""
    if file_format is None:
        return ""
    known = get_args(FileFormat)
    if str(file_format).removeprefix(".") not in known:
        raise SettingsError(f"file_format is {file_format!r}", f"expected: {', '.join(known)}")
    return f".{str(file_format).removeprefix('.')}"


def on_drive(path: Path) -> Path:
    """Where a path on Drive is on this machine: below Colab's mount, or below the folder $ANYFORMER_DRIVE."""
    mount = Path(os.environ.get("ANYFORMER_DRIVE") or DRIVE).expanduser()
    root = next((root for root in (DRIVE, mount) if path.is_relative_to(root)), None)
    if root is not None:
        path = path.relative_to(root)
    elif path.is_absolute():
        raise DataError(f"{path} is not on Drive", f"Drive is {mount}", "load_local_file reads it")
    elif path.parts[:1] != ("MyDrive",):
        path = "MyDrive" / path
    if not (mount / "MyDrive").is_dir():
        raise DataNotFound(
            f"Google Drive is not mounted: {path} cannot be read",
            f"looked for {mount / 'MyDrive'}",
            f"in Colab: from google.colab import drive; drive.mount('{DRIVE}')\n"
            "elsewhere: set ANYFORMER_DRIVE to the folder that holds MyDrive, or use load_local_file",
        )
    return mount / path


# --- plain text ---------------------------------------------------------------------------------------------------


def _plain_table(path: Path, column: str, *, as_text: bool) -> tuple[Table, list[Finding]]:
    """Paragraphs or lines of one text; of several files, each a row."""
    single = SingleText(path=path) if as_text else None
    notes: list[Finding] = []
    if single is None:
        corpus = open_corpus(str(path))
        notes = [note for note in corpus.findings if note.name != "one text"]
        single = corpus.text
        if single is None:
            return _one_column(corpus.name, column, lambda: iter(corpus), "document"), notes
    head = next(single.pieces(), "")
    paragraphs = len([part for part in head.split("\n\n") if part.strip()]) >= _PARAGRAPHS
    rows, why = (_paragraphs, "blank lines part it") if paragraphs else (_lines, "few blank lines part it")
    kind = "paragraph" if paragraphs else "line"
    notes.append(Finding("rows", "note", f"{kind}s", "", why))
    return _one_column(path.name, column, lambda: rows(single), kind), notes


def _one_column(name: str, column: str, texts: Any, word: str) -> Table:
    def records() -> Iterator[tuple[str, dict[str, Any]]]:
        return ((f"{word} {number:,}", {column: text}) for number, text in enumerate(texts(), start=1))

    return Table(name, {column: list(islice(texts(), 10))}, records)


def _lines(single: SingleText) -> Iterator[str]:
    rest = ""
    for piece in single.pieces():
        *whole, rest = (rest + piece).split("\n")
        yield from whole
        while len(rest) >= _ROW_CHARACTERS:
            yield rest[:_ROW_CHARACTERS]
            rest = rest[_ROW_CHARACTERS:]
    if rest:
        yield rest


def _paragraphs(single: SingleText) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in _lines(single):
        if lines and (not line.strip() or size + len(line) > _ROW_CHARACTERS):
            yield "\n".join(lines)
            lines, size = [], 0
        if line.strip():
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield "\n".join(lines)
