"""What parts the cells of a .csv is what most rows agree on; the message names it, and the row that differs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from anyformer.core.errors import DataError
from anyformer.data import open_corpus

GERMAN = [[str(n), f"der {n}. Text, " + "und, weiter " * (n % 4), f"{n},5"] for n in range(2, 140)]


def write(path: Path, rows: list[list[str]], mark: str = ";", first: str = "", quoting: int = 0) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write(first)
        csv.writer(stream, delimiter=mark, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("mark", [";", "|", ","])
@pytest.mark.parametrize("heading", [["id", "Text", "Note"], ["id", "Text, frei", "Note"], ["id", "Text; frei", "N|e"]])
def test_the_separator_is_found(tmp_path: Path, mark: str, heading: list[str], quoting: int) -> None:
    corpus = open_corpus(write(tmp_path / "a.csv", [heading, *GERMAN], mark, quoting=quoting), heading[1])
    assert list(corpus) == [row[1] for row in GERMAN]
    assert [f.measured for f in corpus.findings if f.name == "separator"] == ([repr(mark)] if mark != "," else [])


@pytest.mark.parametrize("line", [2, 79, 130])
@pytest.mark.parametrize("mark", [";", ","])
def test_the_row_that_differs_is_named(tmp_path: Path, line: int, mark: str) -> None:
    rows = [["id", "text", "n"], *([row[0], f"{row[0]} words", "x"] for row in GERMAN)]
    rows[line - 1] = [*rows[line - 1], "more"]
    with pytest.raises(DataError) as caught:
        list(open_corpus(write(tmp_path / "a.csv", rows, mark)))
    assert f"a.csv, line {line} has 4 cells; the first line has 3\n  separator: {mark!r}\n" in str(caught.value)
    assert f'"a{mark} b"' in caught.value.fix


@pytest.mark.parametrize("mark", [";", ",", "|"])
@pytest.mark.parametrize("first", ["sep={}\r\n", '\ufeff"sep={}"\n'])
def test_the_first_line_of_excel(tmp_path: Path, mark: str, first: str) -> None:
    rows = [["id", "text"], ["1", "one; two, three|four"], ["2", "five\nsix"]]
    path = write(tmp_path / "a.csv", rows, mark, first.format(mark))
    corpus = open_corpus(path)
    assert list(corpus) == ["one; two, three|four", "five\nsix"]
    assert (corpus.findings[0].measured, corpus.findings[0].reason) == (repr(mark), "the first line of a.csv says so")
    with path.open("a") as stream:
        stream.write(f"3{mark}x{mark}y\n")
    with pytest.raises(DataError, match=r"line 6 has 3 cells"):
        list(open_corpus(path))


def test_one_column_is_not_parted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, texts in (
        ("text\na; b\nc\n", ["a; b", "c"]),
        ("note; remark\nhello\nyou\n", ["hello", "you"]),
        ("text\na|b\nc|d\n", ["a|b", "c|d"]),  # the heading decides
    ):
        path.write_text(content)
        assert list(open_corpus(path)) == texts


def test_rows_of_all_widths_are_parted_by_what_parts_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;text\n1;a;b\n2;a;b;c\n3;d;e;f;g\n")
    with pytest.raises(DataError, match=r"line 2 has 3 cells; the first line has 2(?s:.*)separator: ';'"):
        open_corpus(path)


def test_a_comma_that_every_row_agrees_on_is_not_beaten_by_more_cells(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("text,a|b|c\n" + "".join(f"some words {n},1|2|{n}\n" for n in range(9)))
    assert next(iter(open_corpus(file))) == "some words 0"
