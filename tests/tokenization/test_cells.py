"""One cell → its text; what a column holds; the one line that makes texts of what is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from anyformer.tokenization.cells import cell_text, described, held_in, joined_how, way_out
from anyformer.tokenization.columns import pick_column

ASKED = {"role": "user", "content": "how?"}
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "image"}, {"text": "and so"}]}
SILENT = {"role": "system", "content": None, "name": "x"}
SHARED = [{"from": "human", "value": "how?"}, {"from": "gpt", "value": "so"}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a", "b c", "", "d"], "a\nb c\n\nd"),
        (["a", None, "b"], "a\nb"),
        (np.array(["a", "b"], dtype=object), "a\nb"),
        ([SILENT, ASKED, PARTS], "system: \nuser: how?\nassistant: so\nand so"),
        (SHARED, "human: how?\ngpt: so"),
        (np.array(SHARED, dtype=object), "human: how?\ngpt: so"),
        ({"from": ["human", "gpt"], "value": ["how?", "so"]}, "human: how?\ngpt: so"),
        ([], ""),
        (None, ""),
        ("plain", "plain"),
    ],
)
def test_what_is_joined(value: Any, text: str) -> None:
    assert cell_text(value, nested=True) == text
    assert cell_text(value) == (text if value is None or isinstance(value, str) else None)


@pytest.mark.parametrize(
    "value",
    [
        7,
        [1, 2],
        ["a", 1],
        {"body": "a"},
        ASKED,
        [{"speaker": "A", "text": "a"}],
        [ASKED, "a"],
        [{"role": 1, "content": "a"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [7]}],
        [{"role": "user", "content": [{"type": "text", "text": 7}]}],
        {"from": ["human"], "value": ["how?", "so"]},
    ],
)
def test_what_is_no_text(value: Any) -> None:
    assert cell_text(value, nested=True) is None
    assert held_in([value] * 3) is None


def test_what_a_column_holds() -> None:
    assert held_in(["a", None, "", "b", 7]) == "text"
    assert held_in([["a"], [], None, ["b", "c"]]) == "strings"
    assert held_in([SHARED, None]) == "messages"
    assert held_in(["1", "2.5"]) is None
    assert held_in([["1", "2"]]) is None
    assert held_in([]) is None
    assert joined_how([SHARED, [ASKED]]) == "1.5 messages in a text on average, joined as 'role: content' lines"
    assert joined_how([["a"], ["b"]]) == "1 string in a text on average, joined with line ends"
    assert joined_how(["a"]) == ""


LONG = ["a long text in a list"] * 3


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"text": ["short"], "messages": [SHARED]}, "text"),  # a usual name
        ({"title": ["a short title"], "messages": [SHARED]}, "messages"),
        ({"rejected": [SHARED * 9], "conversations": [SHARED]}, "conversations"),
        ({"chosen": [SHARED], "rejected": [SHARED * 9]}, "chosen"),
        ({"id": ["c0-17"], "lines": [LONG], "tags": [["a"]]}, "lines"),  # an id is no text
        ({"title": ["a title in words"], "lines": [LONG]}, "title"),
        ({"id": ["f" * 64], "messages": [SHARED]}, "messages"),  # shorter than its id
        ({"inhalt": ["字" * 64], "messages": [SHARED]}, "inhalt"),
        ({"report": ["many words " * 99], "messages": [SHARED]}, "report"),
        ({"title": ["a title in words " * 9], "text": [LONG]}, "title"),
        ({"inhalt": ["wort" * 99], "tags": [["a", "b"]]}, "inhalt"),
        ({"title": ["a title in words"], "Sentence": [LONG]}, "Sentence"),
    ],
)
def test_which_column_is_taken(columns: dict[str, list[Any]], name: str) -> None:
    picked = pick_column(columns)
    assert picked is not None
    assert picked.name == name == picked.finding.measured
    assert picked.nested == (not isinstance(columns[name][0], str))
    assert f"columns: {', '.join(columns)}" in picked.finding.reason
    assert picked.nested == ("joined" in picked.finding.reason)


def test_a_column_that_is_taken_for_something_else_is_listed_only() -> None:
    picked = pick_column({"text": ["a"], "label": ["much longer words"]}, without="label")
    assert picked is not None
    assert picked.finding.reason == "by its name; columns: text, label"
    assert pick_column({"text": ["a"]}, without="text") is None


def test_columns_are_described() -> None:
    columns = {
        "n": [1, 2],
        "s": ["1", "2"],
        "flag": [True],
        "none": [None, ""],
        "meta": [{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}],
        "ids": [[1, 2]],
        "turns": [[{"who": "A"}]],
        "raw": [b"x"],
        "t": ["words"],
    }
    assert described(columns) == (
        "columns: n (numbers), s (numbers), flag (true or false), none (empty), meta (records: a, b, c, d, …), "
        "ids (lists of numbers), turns (lists of records: who), raw (bytes values), t (text)"
    )
    assert described({}) == "columns: none"


@pytest.mark.parametrize(
    ("columns", "column", "text"),
    [
        ({"id": [1], "meta": [{"lang": "en", "body": {"it's": "some words"}}]}, "meta", "some words"),
        ({"turns": [[{"who": "A", "says": "some"}, {"who": "B", "says": "words"}]]}, "turns", "some\nwords"),
        ({"pages": [[["a", "b"], ["c"]]]}, "pages", "a\nb\nc"),
        ({"scores": [[1, 2.5]], "meta": [{"a": "b"}]}, "meta", "b"),
        ({"scores": [[1, 2.5]]}, "scores", "1 2.5"),
    ],
)
def test_the_way_out_makes_the_text(columns: dict[str, list[Any]], column: str, text: str) -> None:
    assert json.loads(json.dumps(columns)) == columns
    made = way_out(columns)
    assert made is not None
    assert made[0] == column
    assert eval(made[1], {"v": columns[column][0]}) == text


def test_numbers_and_token_ids_are_no_text() -> None:
    assert way_out({"n": [1], "s": ["1"], "input_ids": [[5, 6]], "none": [None]}) is None


def test_a_message_that_only_calls_a_tool_has_no_text() -> None:
    chat = [{"role": "user", "content": "add"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]
    assert cell_text(chat, nested=True) == "user: add\nassistant: "
    assert cell_text([{"role": "user"}], nested=True) is None
