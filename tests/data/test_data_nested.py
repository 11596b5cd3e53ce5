"""Chats and lists of strings train as they are, through every door; what is refused has a way out that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from anyformer.core.errors import DataError
from anyformer.core.view import QuietView
from anyformer.data import DatasetLoader, open_corpus
from anyformer.data.examples import Columns, open_examples
from anyformer.data.streaming import open_stream
from anyformer.tokenization import AdaptiveTokenizer

CHATS = [
    {"id": f"c{n}", "messages": [{"role": "user", "content": f"question {n}"}, {"role": "bot", "content": "yes " * n}]}
    for n in range(1, 30)
]
TEXTS = [f"user: question {n}\nbot: " + "yes " * n for n in range(1, 30)]
HOW = "2 messages in a text on average, joined as 'role: content' lines; columns: id, messages"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_chat_from_every_source(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(CHATS)
    whole.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(CHATS))
    sources = [write(tmp_path / "a.jsonl", CHATS), tmp_path / "a.parquet", tmp_path / "a.json", whole, CHATS]
    sources += [{"id": [1] * 29, "messages": whole["messages"][:]}, pandas.read_parquet(tmp_path / "a.parquet")]
    for source in sources:
        corpus = open_corpus(source)
        assert list(corpus) == TEXTS
        found = corpus.findings[-1]
        assert (found.name, found.measured, found.reason) == ("text column", "messages", HOW)
        assert list(open_corpus(source, text_column="messages")) == TEXTS


def test_a_chat_that_streams() -> None:
    stream = open_stream(datasets.Dataset.from_list(CHATS).to_iterable_dataset())
    assert [text for _, text in stream.read(0, None)] == TEXTS
    assert (stream.findings[0].measured, stream.findings[0].reason) == ("messages", HOW)


def test_a_row_of_a_stream_without_the_column() -> None:
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}, {"body": "b"}]))
    with pytest.raises(DataError, match=r"row 2 read has no 'text'(?s:.*)it has body"):
        list(open_stream(rows).read(0, None))


def test_a_tokenizer_learns_from_a_chat(tmp_path: Path) -> None:
    made = AdaptiveTokenizer.load_or_create(300, datasets.Dataset.from_list(CHATS), tmp_path, view=QuietView())
    assert made.decode(made.encode(TEXTS[0])) == TEXTS[0]
    assert {f.name: f.reason for f in made.findings}["text column"] == HOW


def test_examples_of_chats_and_lists() -> None:
    rows = [{"label": n % 2, "messages": row["messages"]} for n, row in enumerate(CHATS)]
    examples = open_examples(rows, "classification", Columns())
    assert list(examples.first) == TEXTS
    pairs = [{"dialogue": ["a b", "c"], "summary": "x"}, {"dialogue": ["d"], "summary": "y"}]
    for columns in (Columns(), Columns(source="dialogue", target="summary")):
        read = open_examples(pairs, "seq2seq", columns)
        assert list(zip(read.first, read.second, strict=True)) == [("a b\nc", "x"), ("d", "y")]
        assert "dialogue: 1.5 strings in a text on average" in read.findings[0].reason


def test_dataset_loader_makes_a_column_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DatasetLoader(preprocessing=False, min_length=0, cache_dir=tmp_path / "cache", view=QuietView())
    local = loader.load_local_file(write(tmp_path / "a.jsonl", CHATS))
    source = datasets.Dataset.from_list(CHATS)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, *, split: source)
    hub = loader.load_huggingface("me/it")
    for made in (local, hub):
        assert made["messages"][:] == TEXTS
        assert made["id"][:] == [row["id"] for row in CHATS]
        assert made.features["messages"] == datasets.Value("string")
    assert loader.get_statistics(source)["total_chars"] == sum(map(len, TEXTS))


def test_a_list_in_a_column_of_text_is_a_fault_and_text_in_a_nested_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}] * 3 + [{"text": ["b"]}])
    with pytest.raises(DataError, match=r"line 4: column 'text' holds \['b'\], not text"):
        list(open_corpus(path))
    assert list(open_corpus(write(path, [{"text": ["a", "b"]}] * 3 + [{"text": "c"}])))[2:] == ["a\nb", "c"]
    with pytest.raises(DataError, match="line 4: column 'text' holds 7, not text"):
        list(open_corpus(write(path, [{"text": ["a", "b"]}] * 3 + [{"text": 7}])))


@pytest.mark.parametrize("name", ["a b.jsonl", "lines.json", "a.parquet", "a.jsonl.gz"])
def test_the_way_out_runs(tmp_path: Path, name: str) -> None:
    rows = [{"id": n, "meta": {"lang": "en", "body": f"text {n} é"} if n != 2 else None} for n in range(5)]
    path = write(tmp_path / "a.jsonl", rows).rename(tmp_path / name.removesuffix(".gz"))
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".gz"):
        subprocess.run(["gzip", str(path)], check=True)
        path = tmp_path / name
    for asked in (None, "meta"):
        with pytest.raises(DataError) as caught:
            open_corpus(path, asked)
        assert "columns: id (numbers), meta (records: lang, body)" in str(caught.value)
    command = caught.value.fix.removeprefix("make a table of texts: ")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, env=environment)
    made = tmp_path / f"{name.split('.')[0]}.texts.jsonl"
    assert list(open_corpus(made)) == [f"text {n} é" for n in (0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"data": [{"text": "a"}, {"text": "b"}]}, "the rows lie there"),
        ({"version": "1.0", "data": [{"text": "a"}, {"text": "b"}]}, "not read: version"),
        ({"data": [{"text": "a"}, {"text": "b"}], "names": ["x"], "n": {"a": [1]}}, "not read: names, n"),
    ],
)
def test_rows_under_a_key(tmp_path: Path, content: dict[str, Any], found: str) -> None:
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(content, indent=indent))
        corpus = open_corpus(path)
        assert list(corpus) == ["a", "b"] == list(corpus)
        assert (corpus.findings[0].name, corpus.findings[0].measured) == ("layout", "the list under 'data'")
        assert found in corpus.findings[0].reason


def test_columns_with_records_stay_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": ["a", "b"], "meta": [{"body": "x"}, {"body": "y"}]}))
    assert list(open_corpus(path)) == ["a", "b"]
    path.write_text(json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}, {"text": "c"}]}))
    with pytest.raises(DataError, match="train 1, test 2"):
        open_corpus(path)


def test_of_a_preferred_and_a_rejected_chat_the_preferred_is_read(tmp_path: Path) -> None:
    file = tmp_path / "dpo.jsonl"
    row = {side: [{"role": "assistant", "content": f"{side} answer"}] for side in ("rejected", "chosen")}
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(9)))
    assert next(iter(open_corpus(file))) == "assistant: chosen answer"
