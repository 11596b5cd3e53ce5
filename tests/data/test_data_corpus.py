"""Text from files, folders, lists and datasets; and one clear message for everything that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.core.errors import DataError, DataNotFound
from anyformer.data import open_corpus
from anyformer.data.examples import Columns, open_examples
from anyformer.data.reading import SingleText, human_bytes


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_single_text_comes_in_pieces_that_join_to_it(tmp_path: Path) -> None:
    text = "".join(f"line {n} é 世界 😀\r\n" for n in range(20_000))
    corpus = open_corpus(write(tmp_path / "a.txt", text))
    assert corpus.single_text
    assert corpus.name == "a.txt"
    pieces = list(corpus)
    assert "".join(pieces) == text
    assert all(len(p.encode()) <= 64 * 1024 and p.endswith("\n") for p in pieces)
    assert min(len(p.encode()) for p in pieces[:-1]) > 32 * 1024
    assert list(corpus) == pieces  # again
    assert open_corpus(corpus) is corpus


@settings(max_examples=60, deadline=None)
@given(
    unit=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    repeat=st.integers(1, 9000),
    share=st.floats(0.01, 0.99),
)
def test_pieces_and_cuts_never_split_a_character(unit: str, repeat: int, share: float) -> None:
    text = unit * repeat  # often without a line end: one giant line
    single = SingleText(text=text)
    data = text.encode().removeprefix(b"\xef\xbb\xbf")
    assert "".join(single.pieces()).encode() == data
    cut = single.cut(share)
    assert "".join(single.pieces(0, cut)).encode() == data[:cut]
    assert "".join(single.pieces(cut)).encode() == data[cut:]
    assert abs(cut - len(data) * (1 - share)) <= max(4, len(data) // 100)


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert list(open_corpus(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello"))) == ["hello"]
    folder = tmp_path / "f"
    write(folder / "1.txt", b"\xef\xbb\xbfhello")
    write(folder / "2.txt", "world")
    assert list(open_corpus(folder)) == ["hello", "world"]
    assert list(open_corpus(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "x"}\n'))) == ["x"]
    assert list(open_corpus(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\nx\n"))) == ["x"]


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "b/2.md", "two")
    write(tmp_path / "a.txt", "one")
    write(tmp_path / ".hidden", "no")
    write(tmp_path / ".git/config.txt", "no")
    write(tmp_path / "image.png", b"\x89PNG\0\0")
    write(tmp_path / "latin.txt", "é".encode("latin-1"))
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "c/t.csv", "text\nno\n")
    corpus = open_corpus(str(tmp_path))
    assert not corpus.single_text
    assert list(corpus) == ["one", "two"]
    assert corpus.description == "2 files, 6 bytes"
    wide, tables, others = (f for f in corpus.findings if f.name == "files skipped")
    assert (others.verdict, others.measured) == ("note", "1 binary: image.png; 1 empty: empty.txt")
    assert (tables.verdict, tables.measured) == ("warn", "1 table: t.csv")
    assert tables.reason == f"tables are read alone, or with tables of one kind (--data {tmp_path / 'c/t.csv'})"
    assert (wide.verdict, wide.measured) == ("warn", f"1 not UTF-8: {tmp_path / 'latin.txt'} (byte 0xe9 at offset 0)")


def test_a_folder_with_one_text_is_one_text(tmp_path: Path) -> None:
    write(tmp_path / "d/book.txt", "the book")
    corpus = open_corpus(tmp_path)
    assert corpus.single_text
    assert [f.name for f in corpus.findings] == ["one text"]


def test_a_folder_of_tables_is_one_table(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"text": "2"}\n')
    write(tmp_path / "a.jsonl", '{"text": "one"}\n')
    assert list(open_corpus(tmp_path)) == ["one", "2"]


def test_the_standard_library() -> None:
    corpus = open_corpus("python-stdlib")
    assert corpus.name == "python-stdlib"
    assert not corpus.single_text
    documents = list(corpus)
    assert len(documents) > 300
    assert any("def namedtuple(" in d for d in documents)  # collections/__init__.py
    assert not any("site-packages" in f.measured for f in corpus.findings)
    assert "without site-packages" in corpus.findings[0].reason
    assert open_corpus("python-stdlib").scan.fingerprint == corpus.scan.fingerprint


def test_lists_and_dicts() -> None:
    corpus = open_corpus(["a", "b", "", "c"])
    assert not corpus.single_text
    assert list(corpus) == ["a", "b", "c"]
    assert open_corpus(["one long text"]).single_text
    assert list(open_corpus({"id": [1, 2], "Content": ["x", "y"]})) == ["x", "y"]


def test_huggingface_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"label": [0, 1], "review": ["good film", "bad film"]})
    corpus = open_corpus(table)
    assert list(corpus) == ["good film", "bad film"] == list(corpus)
    assert corpus.description == "2 rows"
    assert [f.measured for f in corpus.findings] == ["review"]
    parts = datasets.DatasetDict({"train": table, "test": table})
    corpus = open_corpus(parts)
    assert list(corpus) == ["good film", "bad film"]
    assert "test" in corpus.findings[0].reason
    assert list(open_corpus(table.to_iterable_dataset())) == ["good film", "bad film"]


BAD: list[tuple[str, str | bytes, str]] = [
    ("zero.txt", "", "is empty"),
    ("bom.txt", b"\xef\xbb\xbf", "bom.txt is empty"),
    ("nul.txt", b"abc\0def", "NUL byte at offset 3"),
    ("utf16.txt", "hello".encode("utf-16"), "iconv -f UTF-16"),
    ("latin.txt", b"caf\xe9 noir", "not UTF-8: byte 0xe9 at offset 3"),
    ("late.txt", b"a" * 70_000 + b"\xff" + b"b" * 10, "byte 0xff at offset 70,000"),
    ("cut.txt", "ab世".encode()[:-1], "offset 2"),
    ("bom_bad.txt", b"\xef\xbb\xbfab\xff", "offset 5"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD)
def test_bad_text(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _ = open_corpus(write(tmp_path / name, data)).scan
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_nothing_there_names_what_is_close(tmp_path: Path) -> None:
    write(tmp_path / "shakespeare.txt", "x")
    with pytest.raises(DataNotFound, match=r"close names there: shakespeare\.txt"):
        open_corpus(tmp_path / "shakespere.txt")
    with pytest.raises(DataNotFound, match="no folder"):
        open_corpus(tmp_path / "nowhere" / "a.txt")
    for text in ("To be, or not to be,\nthat is the question", "x" * 5000):
        with pytest.raises(DataNotFound, match=r"give a list: \[text\]"):
            open_corpus(text)
    with pytest.raises(FileNotFoundError):
        open_corpus("no-such-file")


def test_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text in the folder"):
        open_corpus(tmp_path)
    write(tmp_path / "x.bin", b"\0\1")
    write(tmp_path / "e.txt", b"")
    with pytest.raises(DataError, match="1 binary, 1 empty"):
        open_corpus(tmp_path)


def test_texts_and_tables_of_other_libraries() -> None:
    import datasets
    import numpy
    import pandas

    texts = ["a", "b", "c"]
    for held in (numpy.array(texts), pandas.Series(texts), datasets.Dataset.from_dict({"x": texts})["x"]):
        assert list(open_corpus(held)) == texts
    frame = pandas.DataFrame({"n": [1, 2, 3], "body": texts})
    assert list(open_corpus(frame)) == texts
    assert open_examples(frame, "classification", Columns(label="n")).second == ("1", "2", "3")
    for nothing in (numpy.array([1, 2]), pandas.DataFrame({"n": [1]}), {"a", "b"}, b"text"):
        with pytest.raises(DataError):
            open_corpus(nothing)


def test_a_list_of_rows() -> None:
    corpus = open_corpus([{"text": "a", "n": 1}, {"n": 2}, {"text": "b"}])
    assert list(corpus) == ["a", "b"]
    assert corpus.scan.quality is not None
    assert corpus.scan.quality.empty == 1


def test_things_that_are_no_data() -> None:
    things: list[tuple[Any, str]] = [
        (5, "data is int"),
        (None, "data is NoneType"),
        (["a", 3], "a list with a int"),
        ([{"text": "a"}, 3], "a list with a dict"),
        ([{"n": 1}], "no column with text"),
        ({"text": ["a", "b"], "n": [1]}, r"different lengths\n.*text 2, n 1"),
        ([], "the list of texts is empty"),
        (["a", "b\ud800"], "not valid Unicode"),
        ({"n": [1, 2]}, "no column with text"),
    ]
    for data, message in things:
        with pytest.raises(DataError, match=message):
            _ = open_corpus(data).scan


def test_a_column_of_plain_text_is_refused_aloud(tmp_path: Path) -> None:
    write(tmp_path / "f/a.txt", "x")
    for data in (tmp_path / "f/a.txt", tmp_path / "f", ["a", "b"], "python-stdlib"):
        findings = open_corpus(data, text_column="body").findings
        assert [f.measured for f in findings if f.verdict == "warn"] == ["'body' is not used"]


def test_sizes_in_words() -> None:
    assert [human_bytes(n) for n in (812, 1_115_394, 23_000_000, 1500, 5 * 10**10)] == [
        "812 bytes",
        "1.1 MB",
        "23 MB",
        "1.5 kB",
        "50 GB",
    ]
