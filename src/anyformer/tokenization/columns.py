"""Which column of a table holds the text: one rule for learning a tokenizer and for training a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from anyformer.core.findings import Finding
from anyformer.tokenization.cells import cell_text, held_in, is_number, joined_how
from anyformer.tokenization.texts import TEXT_COLUMNS

SAMPLE_ROWS = 100
"""Rows that are looked at."""
# Names under which datasets keep chats, likeliest first.
_CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chosen")


class TextColumn(NamedTuple):
    """The column that holds the text."""

    name: str
    finding: Finding
    """The choice, as it is shown."""
    nested: bool = False
    """Its cells are lists, which ``cell_text`` joins."""


def pick_column(columns: Mapping[str, Sequence[Any]], without: str | None = None) -> TextColumn | None:
    """The column that holds the text and the finding that says why; None where there is none.

    columns: the first values of each; ``without`` is one that is taken for something else. Text under one of the usual
    names comes first, else the longest texts on average. Lists are taken where there is no text, or none as long and
    they are a chat, have one of the usual names, or the texts are single words, as ids are. Where nothing holds mostly
    text, the only column with some text in it: reading it tells the place of what is none.
    """
    listing = f"columns: {', '.join(map(str, columns)) or 'none'}"
    kinds = {name: held_in(values) for name, values in columns.items() if name != without}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    chats = [name for name, kind in kinds.items() if kind == "messages"]
    lists = [name for name, kind in kinds.items() if kind == "strings"]

    if (named := _by_name(texts, TEXT_COLUMNS)) is not None:
        return TextColumn(named, column_finding(named, f"by its name; {listing}"))
    lengths = {name: mean_length(columns[name]) for name in (*texts, *chats, *lists)}
    ids = [name for name in texts if _are_ids(columns[name])]
    longer = [
        name
        for name in (*chats, *lists)
        if all(lengths[name] > lengths[text] or (name in chats and text in ids) for text in texts)
    ]
    longer_chats = [name for name in longer if name in chats]
    lists_of = _by_name(longer, TEXT_COLUMNS) or _by_name(longer_chats, _CHAT_COLUMNS) or next(iter(longer_chats), None)
    if lists_of is None and len(ids) == len(texts):
        lists_of = max(longer, key=lengths.__getitem__, default=None)
    if lists_of is not None:
        return TextColumn(
            lists_of, column_finding(lists_of, f"{joined_how(columns[lists_of])}; {listing}"), nested=True
        )
    if texts:
        best = max(texts, key=lengths.__getitem__)
        reason = "the only one that holds text" if len(texts) == 1 else "the longest texts"
        return TextColumn(best, column_finding(best, reason if len(columns) == 1 else f"{reason}; {listing}"))
    some = [
        name
        for name in kinds
        if any(isinstance(value, str) and value and not is_number(value) for value in columns[name])
    ]
    some = [name for known in TEXT_COLUMNS for name in some if str(name).lower() == known] or some
    if len(some) != 1:
        return None
    return TextColumn(some[0], column_finding(some[0], f"the only one that holds text; {listing}"))


def asked_column(name: str, values: Sequence[Any]) -> TextColumn:
    """A column that was named."""
    how = joined_how(values)
    return TextColumn(name, column_finding(name, f"asked for; {how}" if how else "asked for"), nested=bool(how))


def column_finding(column: str, reason: str) -> Finding:
    """The choice, as it is shown."""
    return Finding("text column", "note", column, "", reason)


def is_text(values: Sequence[Any]) -> bool:
    """Whether a column's sample can be read as texts; nested ones are."""
    return held_in(values) is not None


def mean_length(values: Sequence[Any]) -> float:
    """Characters of a text on average."""
    return sum(len(cell_text(value, nested=True) or "") for value in values) / max(1, len(values))


def _by_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_name = {str(name).lower(): name for name in reversed(names)}
    return next((by_name[name] for name in known if name in by_name), None)


def _are_ids(values: Sequence[Any]) -> bool:
    """Whether all texts are single ASCII words, as ids, names of files and addresses are."""
    return all(len(value.split()) <= 1 and value.isascii() for value in values if isinstance(value, str))
