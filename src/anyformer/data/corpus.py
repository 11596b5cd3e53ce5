"""Where text comes from: a file, a folder, a table, the Python standard library, a list or a dataset."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import shlex
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError, DataNotFound
from anyformer.core.findings import Finding
from anyformer.data.compressed import kind_of
from anyformer.data.hub import hub_dataset, is_hub_name, parse_reference
from anyformer.data.quality import Quality, QualityCounter
from anyformer.data.reading import NotText, SingleText, human_bytes, read_text_file, text_fault
from anyformer.data.tables import as_columns, choose_column, dataset_table, is_table, open_table, table_texts

PYTHON_STDLIB = "python-stdlib"
_NAMED = 3  # files that a finding names
# Not the library itself, or not on every machine: third-party packages, test suites, the editor, the 2-to-3 tool.
_STDLIB_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")


@dataclass(frozen=True)
class Scan:
    """What one pass over the documents showed: size, fingerprint, and the extremes of their hashes."""

    documents: int
    size: int
    """Bytes of the text as UTF-8."""
    fingerprint: str
    """sha256 over the text (of each document its length and sha256, in order)."""
    lowest: bytes
    """The smallest sha256 of a document; empty for a single text."""
    highest: bytes
    quality: Quality | None
    """Faults of the documents; None for a single text, which has none but its pieces."""


class TextHash:
    """The fingerprint of text that is read one document after the other, or one piece of a single text."""

    def __init__(self, single_text: bool) -> None:
        self._kind = "text" if single_text else "documents"
        self._total = hashlib.sha256()

    def add(self, data: bytes) -> bytes:
        """Take the next document, or piece, in UTF-8. Its own sha256; of a piece, which has none, empty."""
        if self._kind == "text":
            self._total.update(data)
            return b""
        digest = hashlib.sha256(data).digest()
        self._total.update(len(data).to_bytes(8, "big") + digest)
        return digest

    def fingerprint(self) -> str:
        """``Scan.fingerprint`` of a corpus of just this text."""
        return f"{self._kind}-{self._total.hexdigest()}"


class Corpus:
    """Documents, read anew and one by one at every iteration.

    Empty documents, which only the scan counts, are left out.
    name: short name ("corpus.txt"). description: what it holds ("1,604 files, 23 MB").
    single_text: whether it is one continuous text; its documents are then consecutive pieces of 64 KB.
    findings: choices made in opening it. files: those it is read from, where it is known.
    parts: each gives the documents of one file, in order; a reader may begin with any of them.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        documents: Callable[[], Iterator[str]] | None = None,
        text: SingleText | None = None,
        findings: Iterable[Finding] = (),
        files: Iterable[Path] = (),
        parts: Iterable[Callable[[], Iterator[str]]] = (),
    ) -> None:
        self.files = tuple(files)
        self.parts = tuple(parts)
        if documents is None and self.parts:
            documents = self._all_parts
        if (documents is None) == (text is None):
            raise TypeError("a corpus has either documents or one text")
        self.name = name
        self.description = description
        self.text = text
        self.findings: tuple[Finding, ...] = tuple(findings)
        self._documents = documents

    def _all_parts(self) -> Iterator[str]:
        return chain.from_iterable(part() for part in self.parts)

    @property
    def single_text(self) -> bool:
        return self.text is not None

    def __iter__(self) -> Iterator[str]:
        if self.text is not None:
            return self.text.pieces()
        assert self._documents is not None
        return filter(None, self._documents())

    @cached_property
    def scan(self) -> Scan:
        """One pass over everything, made once: hashes, counts and checks the text.

        Raises DataError where there is no text, or what reading raises.
        """
        total = TextHash(self.single_text)
        count = size = 0
        lowest = highest = b""
        counter = QualityCounter()
        for document in self if self._documents is None else self._documents():
            data = encode_utf8(document, self.name)
            if not data:
                counter.add(document, data, b"")
                continue
            count += 1
            size += len(data)
            digest = total.add(data)
            if self.single_text:
                continue
            counter.add(document, data, digest)
            lowest = digest if not lowest else min(lowest, digest)
            highest = max(highest, digest)
        if size == 0:
            raise DataError(f"{self.name} is empty: there is no text in it", fix="give a file or folder with text")
        quality = None if self.single_text else counter.result()
        return Scan(count, size, total.fingerprint(), lowest, highest, quality)

    def forget_scan(self) -> None:
        """The text has changed: the next ``scan`` is made anew."""
        self.__dict__.pop("scan", None)


def encode_utf8(document: str, name: str) -> bytes:
    """The document's bytes; DataError for half a surrogate pair, which has none."""
    try:
        return document.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds text that is not valid Unicode: {document[error.start]!r}",
            detail=f"character {error.start:,} of a document that begins {document[:40]!r}",
        ) from error


def open_corpus(data: Any, text_column: str | None = None) -> Corpus:
    """The corpus at a path (file, folder, glob, "python-stdlib", "hf:NAME:CONFIG:SPLIT" on the hub), or in a list of
    strings or of dicts, a dict of lists, a dataset or one column of it, or a pandas DataFrame.

    text_column: the column with the text, for tables and datasets; found by name, then by type, where not given.
    Raises DataNotFound where there is nothing, DataError where it is not text.
    """
    if isinstance(data, Corpus):
        return data
    if isinstance(data, str | os.PathLike):
        return _from_path(os.fspath(data), text_column)
    if isinstance(data, list | tuple) and all(isinstance(item, str) for item in data):
        return _from_list(data, _no_columns(text_column, "a list of texts"))
    data = as_columns(data)
    if isinstance(data, Mapping) or hasattr(data, "column_names"):
        return _from_dataset(data, text_column)
    kind = (
        f"a list with a {next(type(i) for i in data if not isinstance(i, str)).__name__}"
        if isinstance(data, list)
        else type(data).__name__
    )
    fix = "give a path, a list of strings, a dict of lists, or a datasets.Dataset"
    if isinstance(data, Iterator):
        fix = "it can be read only once: give the function that makes it, which is read as a stream"
    elif isinstance(data, Iterable) and not isinstance(data, list | tuple):
        fix = f"stream=True reads it as it comes; else {fix}"
    raise DataError(f"data is {kind}", fix=fix)


def _from_path(data: str, text_column: str | None) -> Corpus:
    if data == PYTHON_STDLIB:
        return _python_stdlib(_no_columns(text_column, PYTHON_STDLIB))
    reference = parse_reference(data)
    if reference is not None:
        dataset, notes = hub_dataset(reference)
        return _from_dataset(dataset, text_column, reference.name, notes)
    if is_glob(data):
        return _from_glob(data, text_column)
    path = require_path(data)
    if path.is_dir():
        return _from_folder(path, text_column)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", fix="give a file with text in it")
    if is_table(path):
        return _from_tables([path], path.name, text_column)
    text = SingleText(path=path)
    next(text.pieces(), None)  # binary and wrong encodings show here, before anything else is done
    notes = _no_columns(text_column, path.name)
    return Corpus(path.name, human_bytes(text.size), text=text, findings=notes, files=[path])


def is_glob(data: str) -> bool:
    """Whether a path is a pattern for several files; a file of just that name is meant itself."""
    return any(sign in data for sign in "*?[") and "\n" not in data and not _exists(Path(data).expanduser())


def _from_glob(pattern: str, text_column: str | None) -> Corpus:
    found = sorted(Path(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True))
    paths = [path for path in found if path.is_file()]
    if not paths:
        folders = f"; {len(found):,} folders do" if found else ""
        raise DataNotFound(
            f"no file matches {pattern}", f"looked in {Path.cwd()}{folders}", "** stands for folders, * for names"
        )
    return _from_many(paths, pattern, f"the files {pattern}", text_column)


def require_path(data: str) -> Path:
    """The path that is meant; DataNotFound, with names like it, where there is nothing."""
    path = Path(data).expanduser()
    if not data:  # it would be the folder we are in
        raise DataNotFound("no data is named: the path is empty", fix="give a file, a folder, a glob or python-stdlib")
    if "\0" in data or "\n" in data or not _exists(path):
        raise _not_found(data, path)
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system takes
        return False


def _not_found(data: str, path: Path) -> DataNotFound:
    if "\n" in data or len(data) > 1024:
        return DataNotFound(
            f"data is taken for a path, but there is no file {data[:40]!r} …", fix="for text itself give a list: [text]"
        )
    folder = path.parent
    near: list[str] = []
    if folder.is_dir():
        near = difflib.get_close_matches(path.name, sorted(p.name for p in folder.iterdir()), n=3, cutoff=0.6)
    detail = f"close names there: {', '.join(near)}" if near else ""
    if not folder.is_dir():
        detail = f"there is no folder {folder} either"
    return DataNotFound(
        f"no data at {data}",
        detail,
        "give a text file, a folder, a glob, .jsonl, .json, .csv, .tsv, .parquet, .arrow or python-stdlib"
        + (f"\nfor the dataset of that name on the hub: hf:{data}" if is_hub_name(data) else ""),
    )


def _no_columns(text_column: str | None, name: str) -> list[Finding]:
    """A column was asked for where there are none; held-out text, say, may be plain where the data is a table."""
    if text_column is None:
        return []
    return [
        Finding("text column", "warn", f"{text_column!r} is not used", "", f"{name} is plain text, without columns")
    ]


def _from_list(texts: list[str] | tuple[str, ...], notes: list[Finding]) -> Corpus:
    if len(texts) == 1:
        encode_utf8(texts[0], "the text")
        text = SingleText(text=texts[0])
        return Corpus("text", human_bytes(text.size), text=text, findings=notes)
    if not texts:
        raise DataError("the list of texts is empty")
    return Corpus("texts", f"{len(texts):,} documents", documents=lambda: iter(texts), findings=notes)


def _from_dataset(data: Any, text_column: str | None, name: str = "dataset", found: Iterable[Finding] = ()) -> Corpus:
    notes = list(found)
    if isinstance(data, Mapping) and "train" in data and hasattr(data["train"], "column_names"):  # a DatasetDict
        others = ", ".join(key for key in data if key != "train") or "none"
        notes.append(Finding("dataset part", "note", "train", "", f"other parts, unused: {others}"))
        data = data["train"]
    table = dataset_table(data, name)
    column = choose_column(table, text_column)
    rows = len(data[column.name]) if isinstance(data, Mapping) else len(data) if hasattr(data, "__len__") else None
    description = f"{rows:,} rows" if rows is not None else "rows"
    return Corpus(name, description, documents=lambda: table_texts(table, column), findings=[*notes, column.finding])


def _from_tables(paths: list[Path], name: str, text_column: str | None, notes: Iterable[Finding] = ()) -> Corpus:
    """One table, or the parts of one in several files, each row a document."""
    first = open_table(paths[0])
    column = choose_column(first, text_column)

    def rows(path: Path) -> Iterator[str]:
        table = first if path == paths[0] else open_table(path)
        if table.columns and column.name not in table.columns:
            raise DataError(
                f"{table.name} has no column {column.name!r}, from which {first.name} is read",
                f"columns: {', '.join(table.columns)}",
                f"give it a column {column.name!r}, or give the files without it",
            )
        return table_texts(table, column)

    size = human_bytes(sum(path.stat().st_size for path in paths))
    description = size if len(paths) == 1 else f"{len(paths):,} files, {size}"
    parts = [partial(rows, path) for path in paths]
    return Corpus(name, description, findings=[*notes, *first.notes, column.finding], files=paths, parts=parts)


def _from_folder(folder: Path, text_column: str | None) -> Corpus:
    return _from_many(_walk(folder), folder.name or str(folder), f"the folder {folder}", text_column)


def _from_many(paths: Iterable[Path], name: str, where: str, text_column: str | None) -> Corpus:
    """Text files, each a document; or, where there are none, the parts of one table."""
    texts: list[Path] = []
    tables: list[Path] = []
    foreign: list[tuple[Path, NotText]] = []
    binary: list[Path] = []
    empty: list[Path] = []
    for path in paths:
        if path.stat().st_size == 0:
            empty.append(path)
        elif is_table(path):
            tables.append(path)
        elif (fault := text_fault(path)) is None:
            texts.append(path)
        elif fault.binary:
            binary.append(path)
        else:
            foreign.append((path, fault))
    kinds = sorted({kind_of(path) for path in tables})
    left_out = [_foreign_text(foreign)] if foreign else []
    if not texts and len(kinds) == 1:
        return _from_tables(tables, name, text_column, left_out)
    if not texts:
        held = f"{len(binary)} binary, {len(empty)} empty files" + (
            f", tables of several kinds: {', '.join(kinds)}" if kinds else ""
        )
        held += f", {left_out[0].measured}" if left_out else ""
        fix = f"name one kind: '*{kinds[0]}'" if kinds else "give a folder with text files"
        raise DataError(f"there is no text in {where}", f"it holds {held}", left_out[0].reason if left_out else fix)
    notes = [*_no_columns(text_column, where), *left_out]
    if tables:
        reason = f"tables are read alone, or with tables of one kind (--data {shlex.quote(str(tables[0]))})"
        notes.append(Finding("files skipped", "warn", _listed(tables, "table"), "", reason))
    skipped = [_listed(files, kind) for files, kind in ((binary, "binary"), (empty, "empty")) if files]
    if skipped:
        notes.append(Finding("files skipped", "note", "; ".join(skipped), "", "only UTF-8 text is read"))
    return _from_files(texts, name, notes)


def _listed(files: list[Path], kind: str) -> str:
    """How many files of a kind, and the first three: "2 binary: a.zip, b.pdf"."""
    names = [path.name for path in files[:_NAMED]] + (["…"] if len(files) > _NAMED else [])
    return f"{len(files):,} {kind}: {', '.join(names)}"


def _foreign_text(files: list[tuple[Path, NotText]]) -> Finding:
    """Texts in other encodings, which are left out: how many, the first three, and what converts the first."""
    named = [f"{path} ({fault.place})" for path, fault in files[:_NAMED]]
    more = ["…"] if len(files) > _NAMED else []
    measured = f"{len(files):,} not UTF-8: {', '.join([*named, *more])}"
    return Finding("files skipped", "warn", measured, "", files[0][1].fix)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in a stable order; hidden ones and what cannot be a regular file left out."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(current, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _python_stdlib(notes: list[Finding]) -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in _walk(root)
        if path.suffix == ".py"
        and not any(part in _STDLIB_SKIPPED or part.startswith("config-") for part in path.relative_to(root).parts)
        and path.stat().st_size > 0
        and text_fault(path) is None
    ]
    if not files:
        raise DataNotFound(f"this Python has no library sources in {root}", fix="give a file or folder of your own")
    reason = f"*.py of this Python, without {', '.join(_STDLIB_SKIPPED[:-1])}"
    return _from_files(files, PYTHON_STDLIB, [*notes, Finding("files", "note", f"{len(files):,}", "", reason)])


def _from_files(files: list[Path], name: str, notes: list[Finding]) -> Corpus:
    size = human_bytes(sum(path.stat().st_size for path in files))
    if len(files) == 1:
        notes = [*notes, Finding("one text", "note", files[0].name, "", "the folder's only text, read as one text")]
        return Corpus(name, f"1 file, {size}", text=SingleText(path=files[0]), findings=notes, files=files)
    parts = [partial(_whole_file, path) for path in files]
    return Corpus(name, f"{len(files):,} files, {size}", findings=notes, files=files, parts=parts)


def _whole_file(path: Path) -> Iterator[str]:
    yield read_text_file(path)
