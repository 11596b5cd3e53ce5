"""Documents read as they come, never all of them in memory: datasets that stream, local files, functions, iterables.

A place says where in the source to go on: plain data, as JSON holds it. None is the beginning.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.data.corpus import Corpus, open_corpus
from anyformer.data.hub import hub_stream, parse_reference, reading_errors
from anyformer.data.patience import impatient_reading
from anyformer.data.reading import human_bytes
from anyformer.data.table import SAMPLE_ROWS, text_in
from anyformer.data.tables import as_columns, choose_column, dataset_table
from anyformer.tokenization.columns import TextColumn

Place = Any
Documents = Iterator[tuple[Place, str]]
"""(the place where it begins, the document)."""

# A dataset's own state is proven on 4 documents at a time, soon and behind 1,200 documents (datasets maps in batches of
# 1,000) or 4 M characters.
_PROOF_DOCUMENTS, _PROOF_REACH, _PROOF_CHARACTERS = 4, 1200, 1 << 22


class TextStream:
    """Documents from a place on, anew at every reading.

    read(epoch, place): the documents of an epoch that are not empty. name, description, findings: as of a corpus.
    identity: what says which source it is. corpus: the local corpus behind it, if there is one.
    """

    def __init__(
        self,
        name: str,
        description: str,
        read: Callable[[int, Place], Documents],
        *,
        identity: str,
        findings: tuple[Finding, ...] = (),
        corpus: Corpus | None = None,
    ) -> None:
        self.name = name
        self.description = description
        self.read = read
        self.identity = identity
        self.findings = findings
        self.corpus = corpus

    @property
    def single_text(self) -> bool:
        return self.corpus is not None and self.corpus.single_text


def is_stream(data: Any) -> bool:
    """Whether data can only be read as a stream: a dataset that streams (torch's too), a function that gives texts."""
    if isinstance(data, Mapping):
        return bool(data) and all(_streams(part) for part in data.values())
    return _streams(data) or isinstance(data, IterableDataset) or (callable(data) and not isinstance(data, type))


def _streams(data: Any) -> bool:
    return hasattr(data, "state_dict") and hasattr(data, "load_state_dict") and hasattr(data, "column_names")


def open_stream(data: Any, text_column: str | None = None) -> TextStream:
    """The stream of a ``datasets.IterableDataset``, of "hf:NAME…", of a function that returns an iterator, of anything
    else that can be iterated again and again (torch's IterableDataset, an object with ``__iter__``), or of anything
    that ``open_corpus`` takes. What a function or an object gives is strings, or rows with a column of text.

    Raises DataNotFound where there is nothing, DataError where it is not text.
    """
    if isinstance(data, TextStream):
        return data
    reference = parse_reference(os.fspath(data)) if isinstance(data, str | os.PathLike) else None
    if reference is not None:
        dataset, revision, notes = hub_stream(reference)
        identity = f"{reference} at revision {revision or 'unknown'}"
        return _of_dataset(dataset, reference.name, identity, text_column, tuple(notes))
    if isinstance(data, Mapping) and is_stream(data):
        part = "train" if "train" in data else next(iter(data))
        note = Finding("dataset part", "note", part, "", f"of {', '.join(map(str, data))}")
        return _of_dataset(data[part], "dataset", _dataset_identity(data[part]), text_column, (note,))
    if _streams(data):
        return _of_dataset(data, "dataset", _dataset_identity(data), text_column, ())
    if isinstance(data, type) and issubclass(data, Iterable):
        raise DataError(f"data is the class {data.__name__} itself", fix=f"give an object of it: {data.__name__}(…)")
    if _gives_anew(data):
        named = type(data).__name__
        identity = f"an object of the Python class {type(data).__module__}.{type(data).__qualname__}"
        return _of_items(lambda: data, named, "the object", identity, text_column)
    if is_stream(data):
        return _of_function(data, text_column)
    return _of_corpus(open_corpus(data, text_column))


# --- where documents come from --------------------------------------------------------------------------------------


def _gives_anew(data: Any) -> bool:
    """Whether data can be iterated again and again, in one order, and is nothing that ``open_corpus`` takes."""
    if isinstance(data, IterableDataset):
        return not isinstance(data, Iterator)
    known = (str, bytes, bytearray, os.PathLike, list, tuple, set, frozenset, Mapping, Corpus, Iterator)
    if not isinstance(data, Iterable) or isinstance(data, (*known, type)) or hasattr(data, "column_names"):
        return False
    return as_columns(data) is data


def _of_function(make: Callable[[], Any], text_column: str | None) -> TextStream:
    name = getattr(make, "__name__", type(make).__name__)
    name = "function" if name == "<lambda>" else name

    identity = f"the Python function {getattr(make, '__module__', '')}.{getattr(make, '__qualname__', name)}"
    return _of_items(make, name, "the function", identity, text_column)


def _of_items(make: Callable[[], Any], name: str, kind: str, identity: str, text_column: str | None) -> TextStream:
    """Strings, or rows with a column of text, as the first item is; they are iterated anew at each reading."""
    itself = "__iter__" if kind == "the object" else "it"

    def give() -> Iterator[Any]:
        try:
            return iter(make())
        except TypeError as error:
            raise DataError(
                f"{kind} {name} gives no texts: {error}",
                fix=f"let {itself} take no arguments and return an iterator of strings, anew at each call",
            ) from error

    opened = give()
    head = list(islice(opened, 1))
    column: TextColumn | None = None
    if head and isinstance(head[0], Mapping):
        head += islice(opened, SAMPLE_ROWS - 1)
        if others := [item for item in head if not isinstance(item, Mapping)]:
            raise _no_item(others[0], head.index(others[0]), name, kind, rows=True)
        column = choose_column(dataset_table(head, name), text_column)

    def read(epoch: int, place: Place) -> Documents:
        items = give()
        if items is opened:
            raise DataError(
                f"{kind} {name} gives the same iterator each time, which can be read only once",
                fix=f"let {itself} return a new one at each call",
            )
        for number, item in enumerate(items):
            if number < (place or 0):
                continue
            if column is not None and isinstance(item, Mapping):
                text = _text_of(item, column, name, number)
            elif column is None and isinstance(item, str):
                text = item
            else:
                raise _no_item(item, number, name, kind, rows=column is not None)
            if text:
                yield number, text

    found = [_counted(kind, "documents given before are asked for again and left out")]
    if column is not None:
        found.insert(0, column.finding)
    elif text_column:
        why = f"{kind} gives texts alone"
        found.append(Finding("text column", "warn", f"{text_column!r} is not used", "", why))
    given = "texts" if column is None else "rows"
    described = f"{given} of {'a function' if kind == 'the function' else 'a Python object'}"
    return TextStream(name, described, read, identity=identity, findings=tuple(found))


def _no_item(item: Any, number: int, name: str, kind: str, *, rows: bool) -> DataError:
    where, wanted = (f"row {number + 1:,}", "a row") if rows else (f"text {number:,}", "a string")
    what = f"{where} of {kind} {name} is {item!r:.60} ({type(item).__name__}), not {wanted}"
    return DataError(what, fix="give strings, or rows with a column of text ({'text': …}), not both")


def _of_corpus(corpus: Corpus) -> TextStream:
    """Local text: by bytes in a single text, by file and document in many files, else by the number of documents."""
    text = corpus.text

    def bytes_from(epoch: int, place: Place) -> Documents:
        assert text is not None
        at = int(place or 0)
        for piece in text.pieces(at):
            yield at, piece
            at += len(piece.encode("utf-8"))

    def files_from(epoch: int, place: Place) -> Documents:
        first, skipped = place or (0, 0)
        for number in range(first, len(corpus.parts)):
            begin = skipped if number == first else 0
            for row, document in enumerate(islice(corpus.parts[number](), begin, None), start=begin):
                if document:
                    yield [number, row], document

    def documents_from(epoch: int, place: Place) -> Documents:
        return ((row, text) for row, text in enumerate(corpus) if row >= (place or 0))

    if corpus.single_text:
        read, how, why = bytes_from, "by bytes", ""
    elif corpus.parts:
        read, how, why = files_from, "by file and document", "within a file, the rows before the place are read over"
    else:
        read, how, why = documents_from, "by documents", "those before the place are read over"
    found = Finding("place in the stream", "note", how, "", why)
    return TextStream(
        corpus.name,
        corpus.description,
        read,
        identity=_file_identity(corpus),
        findings=(*corpus.findings, found),
        corpus=corpus,
    )


def _file_identity(corpus: Corpus) -> str:
    """Paths, sizes and times of change; of many files their number, and a hash over these of each."""
    if not corpus.files:
        return corpus.description
    facts = [(str(path), stat.st_size, stat.st_mtime_ns) for path in corpus.files for stat in [path.stat()]]
    size, changed = sum(fact[1] for fact in facts), np.datetime64(max(fact[2] for fact in facts), "ns")
    when = f"{human_bytes(size)}, changed {np.datetime_as_string(changed, unit='s')}Z"
    if len(facts) == 1:
        return f"{facts[0][0]}, {when}"
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return f"{len(facts):,} files, {when} the latest; names, sizes and times {digest}"


def _dataset_identity(dataset: Any) -> str:
    info = getattr(dataset, "info", None)
    parts = [getattr(info, name, None) for name in ("dataset_name", "config_name", "version")]
    return " ".join(["a dataset given in Python", *(str(part) for part in parts if part)])


def _of_dataset(
    dataset: Any, name: str, identity: str, text_column: str | None, notes: tuple[Finding, ...]
) -> TextStream:
    with _Told(name, 0), impatient_reading:
        column = choose_column(dataset_table(_copied(dataset), name), text_column)
    described = "a dataset that streams"
    kept, copying = _copied(dataset), threading.Lock()  # never read itself

    def rows(epoch: int) -> Any:
        with copying:
            own = _copied(kept)  # its place is part of it, and several may read at once
        if hasattr(own, "set_epoch"):
            own.set_epoch(epoch)
        return own

    def by_state(epoch: int, place: Place) -> Documents:
        own = rows(epoch)
        if place is not None:
            own.load_state_dict(copy.deepcopy(place))
        begins = place
        for number, row in enumerate(own):
            if text := _text_of(row, column, name, number):
                yield begins, text
            begins = own.state_dict()

    def by_count(epoch: int, place: Place) -> Documents:
        for number, row in enumerate(rows(epoch)):
            if number >= (place or 0) and (text := _text_of(row, column, name, number)):
                yield number, text

    with _Told(name, 0), impatient_reading:
        found = _state_finding(dataset, by_state)
    read = by_state if found.verdict == "ok" else by_count

    def told(epoch: int, place: Place) -> Documents:
        documents, given = read(epoch, place), 0
        while True:
            with _Told(name, given), impatient_reading:  # not while the reader is elsewhere: others may be patient
                item = next(documents, None)
            if item is None:
                return
            given += 1
            yield item

    return TextStream(name, described, told, identity=identity, findings=(*notes, column.finding, found))


def _copied(dataset: Any) -> Any:
    """A deep copy; but the hub's file systems, which the library keeps in one dictionary for all, stay shared."""
    facts = getattr(dataset, "__dict__", {})
    return copy.deepcopy(dataset, {id(value): value for name, value in facts.items() if name.endswith("__hffs_cache")})


def _text_of(row: Mapping[str, Any], column: TextColumn, name: str, number: int) -> str:
    if column.name not in row:
        have = f"it has {', '.join(map(str, row)) or 'nothing'}"
        raise DataError(
            f"{name}, row {number + 1:,} read has no {column.name!r}", have, "give the row that column, or remove it"
        )
    return text_in(row[column.name], f"{name}, row {number + 1:,} read: column {column.name!r}", column.nested)


def _counted(what: str, why: str) -> Finding:
    return Finding("place in the stream", "note", f"counted: {what} keeps none of its own", "", why)


def _state_finding(dataset: Any, read: Callable[[int, Place], Documents]) -> Finding:
    """Whether a dataset goes on where its own state says, proven at two places in its beginning."""
    if _has_buffer(dataset):
        # its state is right until the first buffer is given out, and wrong from then on
        why = "a shuffle buffer keeps no place: documents before are read over; a stream is shuffled here, too"
        return _counted("the dataset", why)
    windows: list[list[tuple[Place, str]]] = []
    last: deque[tuple[Place, str]] = deque(maxlen=_PROOF_DOCUMENTS)
    size = 0
    for number, item in enumerate(islice(read(0, None), _PROOF_REACH), start=1):
        last.append(item)
        size += len(item[1])
        if number == 2 * _PROOF_DOCUMENTS:
            windows.append(list(last))
        if size > _PROOF_CHARACTERS:
            break
    windows.append(list(last))
    for window in windows:
        try:
            place = json.loads(json.dumps(window[0][0])) if window else None
        except TypeError:
            return _counted("the dataset", "its own state is no plain data; documents before the place are read over")
        again = [text for _, text in islice(read(0, place), len(window))]
        if again != [text for _, text in window]:
            return _counted("the dataset", "its own state leads to other documents; those before are read over")
    measured = f"the dataset's own state: it led back to the same documents at {len(windows)} places"
    return Finding("place in the stream", "ok", measured, "the same documents")


def _has_buffer(dataset: Any) -> bool:
    """Whether documents pass a shuffle buffer of the datasets library."""
    stages = [getattr(dataset, "_ex_iterable", None)]
    while stages:
        stage = stages.pop()
        if "BufferShuffled" in type(stage).__name__:
            return True
        stages += [getattr(stage, "ex_iterable", None)] if hasattr(stage, "ex_iterable") else []
        stages += list(getattr(stage, "ex_iterables", ()))
    return False


class _Told:
    """What goes wrong with the connection or the files while a dataset streams, as a DataError in plain words."""

    def __init__(self, name: str, given: int) -> None:
        self._name = name
        self._given = given

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, DataError) or not isinstance(error, reading_errors()):
            return
        after = f" after {self._given:,} documents" if self._given else ""
        said = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"{self._name} stopped giving documents{after}",
            f"{type(error).__name__}: {said}",
            "check the network; a run that was saved goes on with --resume",
        ) from error
