"""Examples of two parts: a text and its class, or a text to read and one to write. From tables, lists, or two files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anyformer.core.errors import DataError, DataNotFound
from anyformer.core.findings import Finding
from anyformer.data.corpus import encode_utf8, require_path
from anyformer.data.hub import hub_dataset, parse_reference
from anyformer.data.quality import Quality, QualityCounter
from anyformer.data.reading import human_bytes, read_text_file
from anyformer.data.table import Table, text_in
from anyformer.data.tables import choose_column, dataset_table, is_table, open_table
from anyformer.tokenization.cells import joined_how
from anyformer.tokenization.columns import TextColumn, asked_column, is_text

Kind = Literal["classification", "seq2seq"]
# Names under which datasets keep these, likeliest first.
_LABEL_NAMES = ("label", "labels", "class", "sentiment", "target", "y", "category")
_SOURCE_NAMES = ("src", "source", "en", "text", "article", "document", "dialogue", "question", "input")
_TARGET_NAMES = ("tgt", "target", "de", "summary", "highlights", "answer", "output", "fr", "translation")
# Columns of two texts that have one label together: GLUE (Wang et al. 2018), SNLI, PAWS, BoolQ.
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("question", "passage"), ("text1", "text2"), ("text_a", "text_b")),
)
_BETWEEN = " [SEP] "  # as BERT reads pairs (Devlin et al. 2019, §3): its tokenizer makes it the one token
_FEW_CLASSES = 20  # integers of more kinds than this are rather numbers than classes
_EXAMPLES = "a .tsv, .csv, .jsonl or .parquet table, a list of dicts or of pairs, or a datasets.Dataset"


@dataclass(frozen=True)
class Columns:
    """Which columns hold the parts, where the user says so; found by name where not."""

    text: str | None = None
    label: str | None = None
    source: str | None = None
    target: str | None = None
    target_data: str | None = None
    """The second of two files of as many lines."""


@dataclass(frozen=True)
class Examples:
    """Pairs in memory, in the order of the data."""

    kind: Kind
    name: str
    description: str
    first: tuple[str, ...]
    """What is read."""
    second: tuple[str, ...]
    """What is written, or the class as text: whole numbers without a sign or point."""
    findings: tuple[Finding, ...] = ()
    quality: Quality | None = None
    """Faults of all examples that were read, those that were left out among them."""

    def __len__(self) -> int:
        return len(self.first)

    def only(self, keep: Sequence[bool]) -> Examples:
        """Those whose place in ``keep`` is true."""
        return replace(
            self,
            first=tuple(text for text, kept in zip(self.first, keep, strict=True) if kept),
            second=tuple(text for text, kept in zip(self.second, keep, strict=True) if kept),
        )


def open_examples(data: Any, kind: Kind, columns: Columns) -> Examples:
    """The examples at a path or in an object; those with an empty part are left out and counted in a finding.

    Raises DataNotFound where there is nothing, DataError where no two parts can be told apart, or nothing is left.
    """
    reference = parse_reference(os.fspath(data)) if isinstance(data, str | os.PathLike) else None
    found: list[Finding] = []
    if reference is not None:
        dataset, found = hub_dataset(reference)
        table, description = dataset_table(dataset, reference.name), ""
    elif isinstance(data, str | os.PathLike):
        path = require_path(os.fspath(data))
        if not is_table(path):
            return _usable(_two_files(path, columns.target_data, kind))
        table, description = open_table(path), human_bytes(path.stat().st_size)
    else:
        table, description = _as_table(data), ""
    if kind == "classification":
        parts, label, notes = _text_and_label(table, columns)
        rows = zip(*(_texts(table, part) for part in parts), strict=True)
        texts = tuple(_BETWEEN.join(row) if all(map(str.strip, row)) else "" for row in rows)
        others = tuple(_label(value, where) for where, value in _located(table, label))
    else:
        source, target, notes = _source_and_target(table, columns)
        texts, others = _texts(table, source), _texts(table, target)
    named = description or f"{len(texts):,} rows"
    return _usable(Examples(kind, table.name, named, texts, others, (*found, *table.notes, *notes)))


def split_examples(
    examples: Examples, val_split: float, held_out: Examples | None
) -> tuple[Examples, Examples, tuple[Finding, ...]]:
    """(to train on, held out, findings). A text that is read is never on both sides, whatever belongs to it.

    By the hash of the text, as documents are split; or ``held_out``, whose texts are then left out of the others.
    """
    if held_out is not None:
        known = set(held_out.first)
        keep = [text not in known for text in examples.first]
        found = [Finding("held out", "note", held_out.name, reason="given")]
        if (shared := len(keep) - sum(keep)) > 0:
            why = "they are held out, too, and only measured"
            found.append(Finding("shared texts", "warn", f"{shared:,} left out of the training examples", "0", why))
        if shared == len(keep):
            raise DataError(
                "the held-out examples are the training examples",
                f"{held_out.name} holds every text of {examples.name}",
                "give others to hold out, or none: then a part of the data is held out",
            )
        return examples.only(keep), held_out, tuple(found)
    digests = [hashlib.sha256(encode_utf8(text, examples.name)).digest() for text in examples.first]
    lowest, highest = min(digests), max(digests)
    if lowest == highest:
        raise DataError(
            f"no example of {examples.name} can be held out: all have one text",
            fix="give more examples, or held-out ones of their own (--val_data FILE)",
        )
    below = min(2**64 - 1, int(val_split * 2**64)).to_bytes(8, "big")
    held = [(digest[:8] < below or digest == lowest) and digest != highest for digest in digests]
    measured = f"examples by the hash of their text, {val_split:.0%} of them on average"
    note = Finding("held out", "note", measured, reason="stable when examples are added; no text is on both sides")
    return examples.only([not is_held for is_held in held]), examples.only(held), (note,)


def fingerprint(train: Examples, val: Examples) -> str:
    """sha256 over both sides."""
    total = hashlib.sha256(train.kind.encode())
    for side in (train, val):
        total.update(len(side).to_bytes(8, "big"))
        for text in (*side.first, *side.second):
            data = encode_utf8(text, side.name)
            total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def class_ids(train: Examples, val: Examples, classes: int) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """The name of each class id, and what is worth knowing about them.

    Whole numbers below ``classes`` are the ids themselves; other labels are numbered in sorted order.
    Raises DataError for more classes than the model has.
    """
    seen = {*train.second, *val.second}
    whole = all(label.lstrip("-").isdigit() for label in seen)
    names = tuple(sorted(seen, key=lambda label: (int(label), label) if whole else (0, label)))
    if len(names) > classes:
        shown = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
        raise DataError(
            f"{train.name} has {len(names):,} classes, the model tells {classes:,} apart",
            f"classes: {shown}",
            f"a model with {len(names):,} outputs, or another --label_column",
        )
    if whole and all(0 <= int(label) < classes for label in names):
        names = tuple(str(number) for number in range(max(map(int, names)) + 1))
    spoken = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:10]) if name != str(number))
    found = [Finding("classes", "note", f"{len(seen):,}", reason=spoken + (" …" if len(names) > 10 else ""))]
    if len(seen) < classes:
        why = f"the data has {len(seen):,}; it learns never to give the others"
        found.append(Finding("unused classes", "warn", f"the model tells {classes:,} apart", reason=why))
    return names, tuple(found)


def _usable(examples: Examples) -> Examples:
    keep = [bool(a.strip()) and bool(b.strip()) for a, b in zip(examples.first, examples.second, strict=True)]
    if not any(keep):
        raise DataError(f"{examples.name} holds no example", fix="give examples with both parts")
    examples = replace(examples, quality=_quality(examples, keep))
    if all(keep):
        return examples
    note = Finding("empty examples", "note", f"{len(keep) - sum(keep):,} left out", reason="a part of them is empty")
    return replace(examples.only(keep), findings=(*examples.findings, note))


def _quality(examples: Examples, keep: Sequence[bool]) -> Quality:
    """An example with an empty part is empty, one whose parts are both another's a duplicate; a short one is no fault:
    a word may have a class, or a translation."""
    counter = QualityCounter(short_bytes=0)
    for first, second, kept in zip(examples.first, examples.second, keep, strict=True):
        both = f"{first}\0{second}" if kept else ""
        counter.add_text(encode_utf8(both, examples.name), both)
    return replace(counter.result(), word="examples")


def _located(table: Table, column: str) -> Iterator[tuple[str, Any]]:
    return ((f"{table.name}, {where}, column {column!r}", value) for where, value in table.rows(column))


def _texts(table: Table, column: TextColumn) -> tuple[str, ...]:
    return tuple(text_in(value, where, column.nested) for where, value in _located(table, column.name))


def _label(value: Any, where: str) -> str:
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if hasattr(value, "item") and not isinstance(value, str):  # a number of numpy's
        value = value.item()
    if isinstance(value, str):
        word = value.strip()
        return str(int(word)) if word.lstrip("-").isdigit() else word
    if isinstance(value, int):
        return str(value)
    raise DataError(f"{where} holds {value!r:.60}, which is no class", fix="classes are words or whole numbers")


# --- which columns ------------------------------------------------------------------------------------------------


def _text_and_label(table: Table, columns: Columns) -> tuple[list[TextColumn], str, list[Finding]]:
    """The column of the text, or the two whose texts are read as one; that of the label; why these."""
    names = list(table.columns)
    listing = f"columns: {', '.join(names) or 'none'}"
    label = _asked(table, columns.label, "--label_column") or _named(names, _LABEL_NAMES, columns.text)
    reason = "asked for" if columns.label else f"by its name; {listing}"
    if label is None:
        whole = [name for name in names if name != columns.text and _few_integers(table.columns[name])]
        if len(whole) != 1:
            raise DataError(
                f"which column of {table.name} holds the classes?",
                listing,
                "name it: label_column (--label_column NAME)",
            )
        label, reason = whole[0], f"the only one with a few whole numbers; {listing}"
    noted = Finding("label column", "note", label, reason=reason)
    if pair := _pair(table, columns.text):
        why = f"joined with{_BETWEEN}".rstrip() + f"; {listing}"
        return pair, label, [Finding("text columns", "note", " and ".join(p.name for p in pair), reason=why), noted]
    text = choose_column(table, columns.text, without=label)
    return [text], label, [text.finding, noted]


def _pair(table: Table, asked: str | None) -> list[TextColumn]:
    """Two columns of text that have one label together: named as A+B, or by their names. Empty where there are none."""
    by_name = {name.lower(): name for name in reversed(list(table.columns))}
    if asked is not None:
        one, plus, other = asked.partition("+")
        if asked in table.columns or not plus:
            return []
        pair = tuple(_asked(table, name.strip(), "--text_column") or "" for name in (one, other))
        return [choose_column(table, name) for name in pair]
    for known in _PAIRS:
        if all(name in by_name and is_text(table.columns[by_name[name]]) for name in known):
            return [asked_column(by_name[name], table.columns[by_name[name]]) for name in known]
    return []


def _source_and_target(table: Table, columns: Columns) -> tuple[TextColumn, TextColumn, list[Finding]]:
    names = list(table.columns)
    listing = f"columns: {', '.join(names) or 'none'}"
    source = _asked(table, columns.source, "--source_column")
    target = _asked(table, columns.target, "--target_column")
    reason = "asked for" if source and target else f"by name; {listing}"
    joined = {name: how for name in names if (how := joined_how(table.columns[name]))}
    texts = [name for name in names if name in joined or any(isinstance(v, str) and v for v in table.columns[name])]
    if source is None and target is None and len(texts) == 2 and _named(texts, _SOURCE_NAMES, None) is None:
        source, target, reason = texts[0], texts[1], f"in their order; {listing}"
    source = source or _named(texts, _SOURCE_NAMES, target)
    target = target or _named(texts, _TARGET_NAMES, source)
    others = [name for name in texts if name not in (source, target)]
    if len(others) == 1 and len(texts) == 2:  # the one that is left
        source, target = source or others[0], target or others[0]
    if source is None or target is None or source == target:
        raise DataError(
            f"which column of {table.name} is to be read, which to be written?",
            listing,
            "--source_column NAME --target_column NAME",
        )
    reason = "; ".join([reason, *(f"{name}: {joined[name]}" for name in (source, target) if name in joined)])
    first, second = (asked_column(name, table.columns[name]) for name in (source, target))
    return first, second, [Finding("columns", "note", f"{source} → {target}", reason=reason)]


def _asked(table: Table, name: str | None, flag: str) -> str | None:
    if name is not None and name not in table.columns:
        raise DataError(f"{table.name} has no column {name!r}", f"columns: {', '.join(table.columns)}", f"{flag} NAME")
    return name


def _named(names: Sequence[str], known: Sequence[str], taken: str | None) -> str | None:
    by_name = {name.lower(): name for name in reversed(names) if name != taken}
    return next((by_name[name] for name in known if name in by_name), None)


def _few_integers(values: Sequence[Any]) -> bool:
    seen = {str(value).strip() for value in values}
    return 0 < len(seen) <= _FEW_CLASSES and all(value.lstrip("-").isdigit() for value in seen)


# --- where they are -----------------------------------------------------------------------------------------------


def _as_table(data: Any) -> Table:
    if isinstance(data, Mapping) and "train" in data and hasattr(data["train"], "column_names"):  # a DatasetDict
        data = data["train"]
    if isinstance(data, Mapping) or hasattr(data, "column_names") or hasattr(data, "columns"):
        return dataset_table(data, "dataset")
    rows = list(data) if isinstance(data, list | tuple) else []
    if rows and all(isinstance(row, Mapping) for row in rows):
        return dataset_table(rows, "examples")
    if rows and all(isinstance(row, list | tuple) and len(row) == 2 for row in rows):
        return dataset_table({f"column {i + 1}": [row[i] for row in rows] for i in range(2)}, "examples")
    kind = f"a list with a {type(rows[0]).__name__}" if rows else f"a {type(data).__name__}"
    raise DataError(f"data is {kind}; it must hold examples of two parts", fix=f"give {_EXAMPLES}")


def _two_files(path: Path, target_data: str | None, kind: Kind) -> Examples:
    if kind == "classification":
        raise DataError(f"{path.name} is plain text: its classes are missing", fix=f"give {_EXAMPLES}")
    if target_data is None:
        beside = sorted(p for p in path.parent.glob(f"{path.stem}.*") if p != path) if path.is_file() else []
        fix = f"--target_data {beside[0]}" if len(beside) == 1 else "--target_data FILE, with as many lines"
        raise DataError(
            f"{path.name} is plain text: what is to be written is missing", fix=f"{fix}\nor give {_EXAMPLES}"
        )
    target = require_path(target_data)
    sides = []
    for file in (path, target):
        if not file.is_file():
            raise DataError(f"{file} is not a file", fix="give two text files with as many lines")
        lines = [line.rstrip("\r") for line in read_text_file(file).split("\n")]
        sides.append(tuple(lines[:-1] if lines[-1] == "" else lines))
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{path.name} has {len(sides[0]):,} lines, {target.name} {len(sides[1]):,}",
            "line by line they are to be the same sentences",
            "give two files that belong together",
        )
    size = human_bytes(path.stat().st_size + target.stat().st_size)
    return Examples("seq2seq", f"{path.name} → {target.name}", f"{len(sides[0]):,} lines, {size}", sides[0], sides[1])


def target_beside(val_data: str, target_data: str) -> str:
    """The held-out file to write that belongs to ``val_data``: train.de makes it val.de beside val.en.

    Raises DataNotFound where it is not there.
    """
    target = Path(val_data).expanduser().with_suffix(Path(target_data).suffix)
    if target == Path(val_data).expanduser() or not target.is_file():
        raise DataNotFound(
            f"no file to write belongs to {val_data}",
            f"looked for {target}, with the ending of {target_data}",
            "name the files NAME.a and NAME.b, or give a table with two columns",
        )
    return str(target)
