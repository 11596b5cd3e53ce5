"""One cell of a table → its text: a string as it is; in a nested column, a list of strings or of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Held = Literal["text", "strings", "messages"]
# Who speaks and what is said: the layouts of OpenAI's chat format and of ShareGPT.
_MESSAGES = (("role", "content"), ("from", "value"))
_SHOWN = 4  # names of fields that are listed
_TOKEN_IDS = ("input_ids", "token_ids", "tokens", "ids")


def cell_text(value: Any, nested: bool = False) -> str | None:
    """The text of a cell, empty for a missing one; None for what is no text.

    nested: a list of strings is read as its strings, joined with line ends; a list of messages as lines
    "role: content". Of a message's content in parts those that are text are read.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not nested or (items := _items(value)) is None:
        return None
    if all(item is None or isinstance(item, str) for item in items):
        return "\n".join(item for item in items if item is not None)
    lines = [line for item in items if (line := _message(item)) is not None]
    return "\n".join(lines) if len(lines) == len(items) else None


def held_in(values: Sequence[Any]) -> Held | None:
    """What a column's sample holds: strings that are not all numbers, or lists of strings or of messages; None for
    anything else. A few values of another kind are an error that reading tells with its place."""
    seen = [value for value in values if not _is_missing(value)]
    strings = [value for value in seen if isinstance(value, str)]
    if 2 * len(strings) > len(seen):
        return None if all(is_number(value) for value in strings) else "text"
    lists = [items for value in seen if cell_text(value, nested=True) and (items := _items(value))]
    if 2 * len(lists) <= len(seen):
        return None
    if any(isinstance(items[0], Mapping) for items in lists):
        return "messages"
    return None if all(is_number(item) for items in lists for item in items if item) else "strings"


def is_number(value: str) -> bool:
    """Whether a cell of text is a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def joined_how(values: Sequence[Any]) -> str:
    """How the lists of a column are made into texts, in words; empty for a column of text."""
    kind = held_in(values)
    if kind not in ("strings", "messages"):
        return ""
    sizes = [len(items) for value in values if (items := _items(value))]
    mean = f"{sum(sizes) / len(sizes):.1f}".removesuffix(".0")
    if kind == "messages":
        return f"{mean} message{'' if mean == '1' else 's'} in a text on average, joined as 'role: content' lines"
    return f"{mean} string{'' if mean == '1' else 's'} in a text on average, joined with line ends"


def described(columns: Mapping[str, Sequence[Any]]) -> str:
    """What the columns hold, in words: "columns: id (numbers), meta (records: title, body)"."""
    return "columns: " + (", ".join(f"{name} ({_kind(values)})" for name, values in columns.items()) or "none")


def way_out(columns: Mapping[str, Sequence[Any]]) -> tuple[str, str] | None:
    """(column, Python expression of ``v``, one of its values) that makes texts of what is none; None where no column
    holds strings or lists of numbers. Strings first."""
    found: list[tuple[int, str, str]] = []
    for name, values in columns.items():
        value = next((v for v in values if not _is_missing(v) and not isinstance(v, str)), None)
        for depth, of in enumerate((_of_strings, _of_numbers)):
            if value is not None and (expression := of(value, "v")) is not None:
                found.append((depth, name, expression))
                break
    found = [item for item in found if item[0] == 0 or str(item[1]).lower() not in _TOKEN_IDS]
    if not found:
        return None
    _, name, expression = min(found, key=lambda item: item[0])
    return name, expression


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple) and not value)


def _items(value: Any) -> list[Any] | None:
    """The items of a list or an array; a dict of as long lists, as datasets keeps lists of records, as records."""
    if hasattr(value, "tolist") and not isinstance(value, str):  # an array of numpy's, as pandas keeps lists
        value = value.tolist()
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Mapping) and any({who, what} <= value.keys() for who, what in _MESSAGES):
        fields = {key: _items(field) for key, field in value.items()}
        lists = [field for field in fields.values() if field is not None]
        if len(lists) == len(fields) and len({len(field) for field in lists}) == 1:
            return [dict(zip(fields, row, strict=True)) for row in zip(*lists, strict=True)]
    return None


def _message(item: Any) -> str | None:
    """A message as a line "role: content"; None for what is none."""
    if not isinstance(item, Mapping):
        return None
    for who, what in _MESSAGES:
        if who in item and (what in item or "tool_calls" in item):
            content = _content(item.get(what))
            return f"{item[who]}: {content}" if isinstance(item[who], str) and content is not None else None
    return None


def _content(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    parts = _items(content)
    if parts is None:
        return None
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
        elif not isinstance(part, Mapping) or part.get("type", "text") == "text":
            return None  # a picture has no text; a text that is none is a fault
    return "\n".join(texts)


def _kind(values: Sequence[Any]) -> str:
    value = next((v for v in values if not _is_missing(v)), None)
    if value is None:
        return "empty"
    if held_in(values) == "text":
        return "text"
    if isinstance(value, str):
        return "numbers" if is_number(value) else "some text"
    if (items := _items(value)) is not None:
        first = next((item for item in items if item is not None), None)
        return "lists" if first is None else f"lists of {_plain_kind(first)}"
    return _plain_kind(value)


def _plain_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        names = [str(name) for name in value]
        return f"records: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, str):
        return "strings"
    return "lists" if isinstance(value, list | tuple) else f"{type(value).__name__} values"


def _of_strings(value: Any, name: str) -> str | None:
    """A Python expression for the longest string in a value; None where it holds none."""
    if isinstance(value, str):
        return name
    if isinstance(value, Mapping):
        fields = [(key, _of_strings(field, f"{name}[{key!r}]")) for key, field in value.items()]
        longest = max(fields, key=lambda of: len(str(value[of[0]])) if of[1] else 0, default=("", None))
        return longest[1]
    inner = "x" if name.startswith("v") else "y"
    for item in _items(value) or []:
        if (of := _of_strings(item, inner)) is not None:
            return f"'\\n'.join({of} for {inner} in {name})"
    return None


def _of_numbers(value: Any, name: str) -> str | None:
    items = _items(value)
    plain = items and all(isinstance(item, int | float) for item in items)
    return f"' '.join(map(str, {name}))" if plain else None
