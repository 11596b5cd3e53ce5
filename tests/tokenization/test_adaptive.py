"""A tokenizer for any size: the four tiers, always one that fits, printed, recorded and kept by content."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.view import PlainView, QuietView
from anyformer.data import table
from anyformer.data.tables import choose_column, dataset_table
from anyformer.tokenization import (
    AdaptiveTokenizer,
    BPETrainerConfig,
    FastBPETrainer,
    KnownTokenizer,
    TextTokenizer,
    TokenizerValidator,
    id_count,
)
from anyformer.tokenization.adaptive import texts_of
from anyformer.tokenization.choose import choose_tokenizer
from anyformer.tokenization.columns import SAMPLE_ROWS
from tests.tokenization.conftest import DEAD, TEXTS, Hub


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One known tokenizer: 300 tokens, for a model of 320 rows."""
    table = (KnownTokenizer("small", "me/small", 300, 320, "", "made up"),)
    monkeypatch.setattr("anyformer.tokenization.pretrained.KNOWN_TOKENIZERS", table)


def load(size: int, dataset: Any = None, cache: Path | None = None, **keywords: Any) -> TextTokenizer:
    return AdaptiveTokenizer.load_or_create(size, dataset, cache, view=QuietView(), **keywords)


def said(tokenizer: TextTokenizer) -> dict[str, str]:
    return {finding.name: finding.measured for finding in tokenizer.findings}


# ---------------------------------------------------------------- which tier


@pytest.mark.parametrize(
    ("size", "texts", "strategy"),
    [
        (50257, 0, "pretrained"),
        (30522, 10**6, "pretrained"),
        (50304, 100, "pretrained"),
        (25000, 10_000, "train_bpe"),
        (100_000, 10_000, "train_bpe"),
        (5000, 10, "train_bpe"),
        (5000, 9, "character"),
        (5000, None, "character"),
        (512, 10_000, "train_bpe"),
        (511, 10_000, "character"),
        (100, 10_000, "character"),
    ],
)
def test_strategies(size: int, texts: int | None, strategy: str) -> None:
    assert AdaptiveTokenizer.detect_strategy(size, texts) == strategy
    assert AdaptiveTokenizer.detect_strategy(size, texts, own="mine.json") == "user_upload"


def test_what_is_detected_is_what_is_made(hub: Hub, known: None, small: TextTokenizer, kept: Path) -> None:
    small.save_pretrained(hub.add("me/small"))
    begins = {"pretrained": "small, 300 entries from hf:", "train_bpe": "byte-level BPE", "character": "characters"}
    for size in (100, 300, 320, 400, 511, 512, 600):
        for many in (0, 9, 10, 300):
            strategy = AdaptiveTokenizer.detect_strategy(size, many)
            made = load(size, TEXTS[:many] or None, kept)
            assert said(made)["tokenizer"].startswith(begins[strategy]), (size, many)
            assert id_count(made) <= size


# ---------------------------------------------------------------- always one that fits


@settings(max_examples=60, deadline=None, database=None)
@given(
    size=st.integers(2, 3000),
    texts=st.one_of(st.none(), st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30)),
)
def test_any_size_and_any_corpus(size: int, texts: list[str] | None) -> None:
    made, findings = choose_tokenizer("auto", size, None if texts is None else lambda: texts)
    assert 0 < id_count(made) <= size
    names = {finding.name: finding.measured for finding in findings}
    assert ("unused ids" in names) == (id_count(made) < size)
    if id_count(made) < size:
        assert f"{id_count(made):,}" in names["unused ids"]
    assert TokenizerValidator.validate(made, size, special_tokens=(), lossless=False, samples=0)
    if size >= 260:
        assert TokenizerValidator.validate(made, size, samples=0)


def test_the_size_is_exact_without_a_corpus_and_unused_ids_are_named_with_one(kept: Path) -> None:
    for size in (2, 60, 98, 99, 102, 259, 260, 5000):
        assert len(load(size, None, kept)) == size
    made = load(50_000, TEXTS, kept)
    assert said(made)["unused ids"] == f"ids {len(made):,}–49,999 of the model's 50,000"
    with pytest.raises(TokenizerError, match="must be positive"):
        load(0, TEXTS, kept)


def test_as_the_reference_uses_it(kept: Path, tmp_path: Path) -> None:
    for tokenizer in (load(400, TEXTS, kept), load(700, TEXTS, kept), load(98, None, kept)):
        encoded = tokenizer.encode("Hello world!", max_length=64, padding="max_length")
        assert len(encoded) == len(encoded["input_ids"]) == len(encoded["attention_mask"]) == 64
        length = sum(encoded["attention_mask"])
        assert tokenizer.decode(encoded["input_ids"][:length]) == "Hello world!"
        batch = tokenizer(["one", "another one"], padding=True, truncation=True, max_length=4, return_tensors="pt")
        assert isinstance(batch["input_ids"], torch.Tensor)
        assert batch["input_ids"].shape == (2, 4)
        tokenizer.save(tmp_path / "x.json")
        tokenizer.save_pretrained(tmp_path / "folder")
        again = AutoTokenizer.from_pretrained(tmp_path / "folder")
        assert again("Hello world!")["input_ids"] == list(tokenizer.encode("Hello world!"))


def test_your_own(kept: Path, tmp_path: Path, small: TextTokenizer) -> None:
    small.save(tmp_path / "mine.json")
    small.save_pretrained(tmp_path / "mine")
    for place in (tmp_path / "mine.json", tmp_path / "mine"):
        assert load(310, None, kept, tokenizer=place).get_vocab() == small.get_vocab()
    with pytest.raises(TokenizerError, match="has 300 ids, the model takes 299"):
        load(299, None, kept, tokenizer=tmp_path / "mine.json")


# ---------------------------------------------------------------- offline


def test_offline_falls_to_bpe_and_says_so_then_online_takes_the_pretrained(
    hub: Hub, known: None, small: TextTokenizer, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = f"{hub_url()}"
    small.save_pretrained(hub.add("me/small"))
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    alone = load(320, TEXTS, kept)
    assert said(alone)["tokenizer"].startswith("characters")  # fewer than 512 ids
    assert said(alone)["pretrained tokenizer"] == "small could not be had"
    monkeypatch.setenv("HF_ENDPOINT", online)
    assert said(load(320, TEXTS, kept))["tokenizer"].startswith("small, 300 entries")
    # now it is kept: neither the hub nor its cache is needed
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(kept / "empty"))
    again = load(320, TEXTS, kept)
    assert said(again)["tokenizer"].startswith("small, 300 entries")
    assert "tokenizer cache" in said(again)
    assert again.encode(TEXTS[3]) == small.encode(TEXTS[3])


def hub_url() -> str:
    import os

    return os.environ["HF_ENDPOINT"]


# ---------------------------------------------------------------- the cache


def test_kept_by_content(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(700, TEXTS, kept)
    trained: list[int] = []
    train = FastBPETrainer.train_on_dataset

    def counted(self: FastBPETrainer, *args: Any, **keywords: Any) -> TextTokenizer:
        trained.append(1)
        return train(self, *args, **keywords)

    monkeypatch.setattr(FastBPETrainer, "train_on_dataset", counted)
    again = load(700, list(TEXTS), kept)
    assert trained == []
    assert again.get_vocab() == first.get_vocab()
    assert again.all_special_tokens == first.all_special_tokens
    assert [f for f in again.findings if f.name != "tokenizer cache"] == first.findings
    load(700, TEXTS[1:], kept)
    load(699, TEXTS, kept)
    load(700, TEXTS, kept, special_tokens=["<mask>"])
    assert len(trained) == 3
    assert AutoTokenizer.from_pretrained(next(kept.iterdir())).get_vocab()


@pytest.mark.parametrize("harm", ["flip", "no record", "half record", "missing", "other key"])
def test_what_is_damaged_is_made_again(kept: Path, harm: str) -> None:
    first = load(700, TEXTS, kept)
    (place,) = kept.iterdir()
    record, whole = place / "choice.json", place / "tokenizer.json"
    if harm == "flip":
        content = bytearray(whole.read_bytes())
        content[len(content) // 2] ^= 1
        whole.write_bytes(content)
    elif harm == "no record":
        record.unlink()
    elif harm == "half record":
        record.write_bytes(record.read_bytes()[:100])
    elif harm == "missing":
        whole.unlink()
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "key": "another"}))
    again = load(700, TEXTS, kept)
    assert "tokenizer cache" not in said(again)
    assert again.get_vocab() == first.get_vocab()
    assert "tokenizer cache" in said(load(700, TEXTS, kept))


def test_a_full_disk_is_told(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anyformer.tokenization.kept.write_atomically", full)
    with pytest.raises(TokenizerError, match=r"(?s)cannot be kept in .*No space left.*another cache_dir"):
        load(700, TEXTS, kept)
    monkeypatch.undo()
    assert "tokenizer cache" not in said(load(700, TEXTS, kept))


@pytest.mark.soak
def test_a_full_disk_under_the_library_is_told(kept: Path, tmp_path: Path, small: TextTokenizer) -> None:
    here = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    here += "from anyformer.tokenization import *; from anyformer.core.errors import TokenizerError; "
    here += f"small = load_tokenizer({str(tmp_path / 'small')!r}); texts = (str(n) * 999 for n in range(9999)); "
    here += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    small.save_pretrained(tmp_path / "small")
    for action in (
        f"small.save({str(tmp_path / 'x.json')!r})",
        f"small.save_pretrained({str(tmp_path / 'y')!r})",
        f"AdaptiveTokenizer.load_or_create(700, ['abc'] * 20, {str(kept)!r})",
        f"AdaptiveTokenizer.load_or_create(700, texts, {str(kept)!r})",
    ):
        here += f"try: {action}\nexcept TokenizerError as error: print(error)\n"
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True, check=True)
    told = [line for line in done.stdout.splitlines() if "cannot be" in line]
    assert [line.partition(" cannot be ")[0] for line in told] == [*["the tokenizer"] * 3, "the texts of an iterator"]
    assert done.stdout.count("File too large") == 4
    assert not (tmp_path / "x.json").exists()


def test_what_an_iterator_gives_is_not_held_in_memory() -> None:
    tracemalloc.start()
    texts = texts_of(TEXTS[n % 300] + "the same again and again " * 4000 for n in range(500))  # 50 MB
    assert texts is not None
    sizes = [sum(map(len, texts())) for _ in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes[0] == sizes[1] > 50e6
    assert peak < 40e6  # 16 MB in memory, and the copy of them when they move to the file


@pytest.mark.parametrize("size", ["5000", 5000.0, None, True, 0, -1])
def test_what_is_no_size(size: Any, kept: Path) -> None:
    for ask in (lambda: load(size, TEXTS, kept), lambda: AdaptiveTokenizer.detect_strategy(size, 10)):
        with pytest.raises(TokenizerError, match=f"vocab_size is {size!r}"):
            ask()


def test_a_tokenizer_that_is_no_name(kept: Path, small: TextTokenizer) -> None:
    with pytest.raises(TokenizerError, match="tokenizer is a TextTokenizer; load_or_create takes a name or a path"):
        load(700, TEXTS, kept, tokenizer=small)
    with pytest.raises(TokenizerError, match="is neither a file nor a folder here"):
        load(700, TEXTS, kept, tokenizer="x" * 5000)


def test_the_default_place_is_the_houses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "house"))
    load(700, TEXTS)
    assert [path.name.startswith("bpe-700-") for path in (tmp_path / "house" / "tokenizers").iterdir()] == [True]


# ---------------------------------------------------------------- printed, and what a dataset may be


def test_the_choice_is_printed(kept: Path) -> None:
    stream = io.StringIO()
    made = AdaptiveTokenizer.load_or_create(50257, TEXTS, kept, view=PlainView(stream))
    text = stream.getvalue()
    assert f"tokenizer: byte-level BPE, {len(made):,} entries — the model takes 50,257 ids, at least 512" in text
    assert "HF_HUB_OFFLINE is set" in text
    assert f"unused ids: ids {len(made):,}–50,256 of the model's 50,257" in text
    assert text.count("\n") == len(made.findings)


def test_unknown_characters_are_printed_once(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AdaptiveTokenizer.load_or_create(100, TEXTS, kept)
    assert capsys.readouterr().err.count("unknown characters: become <unk>") == 1
    load(101, TEXTS, kept)
    assert capsys.readouterr().err == ""


class Anew:
    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


def test_every_kind_of_dataset_gives_the_same(kept: Path) -> None:
    import datasets

    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    table = datasets.Dataset.from_list(rows)
    kinds = [
        TEXTS,
        tuple(TEXTS),
        Anew(),
        iter(TEXTS),
        (text for text in TEXTS),
        lambda: iter(TEXTS),
        rows,
        {"text": TEXTS, "id": list(range(len(TEXTS)))},
        {"text": [None, *TEXTS, None]},  # a missing text is none
        [{"text": None}, {"id": 1}, *rows],
        ({"article": text} for text in TEXTS),
        table,
        table.to_iterable_dataset(),
        datasets.DatasetDict({"test": table.select([0]), "train": table}),
    ]
    expected = load(700, TEXTS, kept).get_vocab()
    for kind in kinds:
        made = load(700, kind, kept)
        assert made.get_vocab() == expected
        assert "tokenizer cache" in said(made)  # by content, whatever held it
    (kept.parent / "lines.txt").write_text("".join(TEXTS), encoding="utf-8")
    assert load(700, kept.parent / "lines.txt", kept).get_vocab() == expected
    titled = table.rename_column("text", "words").add_column("title", ["x"] * len(TEXTS))
    assert load(700, titled, kept).get_vocab() == expected
    assert load(700, titled, kept, text_column="words").get_vocab() == expected
    with pytest.raises(TokenizerError, match="no column 'wordds'"):
        load(700, titled, kept, text_column="wordds")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("corpus.txt", "a string, not texts"),
        (Path("no corpus.txt"), "no corpus.txt cannot be read"),
        ({"text": ["a", 5]}, "row 2: column 'text' holds 5 (int), not text"),
        (({"text": text} for text in ("a", 5)), "row 2: column 'text' holds 5 (int), not text"),
        (5, "is int, not texts"),
        ([1, 2], "text 0 is 1 (int)"),
        (["a", None] * 20, "text 1 is None"),
        ({"a": [1], "b": [2]}, "the dataset has no column with text"),
        ([None, "a"], "text 0 is None"),
        ([{"text": "a"}, "b"], "holds rows and 'b' (str)"),
    ],
)
def test_what_is_no_dataset(dataset: Any, message: str, kept: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        load(700, dataset, kept)
    assert message in str(caught.value)


THREE = {"title": ["a title"] * 20, "words": [text * 2 for text in TEXTS[:20]], "kind": ["news"] * 20}


@pytest.mark.parametrize(
    "columns",
    [
        THREE,
        {"Review": TEXTS[:20], "title": [text * 3 for text in TEXTS[:20]]},
        {"id": list(range(20)), "title": [None] * 9 + TEXTS[:11]},
        {"score": ["1.5"] * 20, "title": TEXTS[:20]},
        {"text": [7] * 20, "title": TEXTS[:20]},
        {"a": [*TEXTS[:5], *range(15)], "b": list(range(20))},
        {"text": [None] * 20, "title": TEXTS[:20]},
    ],
)
@pytest.mark.parametrize("kind", ["columns", "rows", "generator", "function"])
def test_the_column_is_chosen_as_the_data_layer_chooses_it(
    columns: dict[str, list[Any]], kind: str, kept: Path
) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    expected = choose_column(dataset_table(columns, "it"), None)[1]
    given = {"columns": columns, "rows": rows, "generator": (row for row in rows), "function": lambda: iter(rows)}
    told: list[Finding] = []
    texts = texts_of(given[kind], None, told.append)
    assert texts is not None
    assert told == []  # nothing is read yet
    wanted = columns[expected.measured]
    if all(text is None or isinstance(text, str) for text in wanted):
        assert list(texts()) == [text for text in wanted if text]
    else:
        with pytest.raises(TokenizerError, match=f"row 6: column '{expected.measured}' holds 0"):
            list(texts())
    assert told == [expected]
    assert table.SAMPLE_ROWS == SAMPLE_ROWS


def test_the_column_is_recorded_and_announced(kept: Path) -> None:
    stream = io.StringIO()
    made = AdaptiveTokenizer.load_or_create(300, THREE, kept, view=PlainView(stream))
    assert said(made)["text column"] == "words"
    assert "text column: words — the longest texts; columns: title, words, kind" in stream.getvalue()
    assert [f.name for f in made.findings].count("text column") == 1
    again = load(300, THREE, kept)
    assert said(again)["text column"] == "words"
    assert "tokenizer cache" in said(again)
    asked = load(300, THREE, kept, text_column="title")
    assert {f.name: f for f in asked.findings}["text column"].reason == "asked for"
    assert "text column" not in said(load(300, TEXTS, kept))


def test_of_a_column_that_is_not_read_nothing_is_said(hub: Hub, known: None, small: TextTokenizer, kept: Path) -> None:
    small.save_pretrained(hub.add("me/small"))
    made = load(320, ({"text": text} for text in TEXTS), kept)
    assert said(made)["tokenizer"].startswith("small, 300 entries")
    assert "text column" not in said(made)


@pytest.mark.parametrize("dataset", [None, [], [""], ["a"], TEXTS])
@pytest.mark.parametrize("tokenizer", ["auto", "char"])
def test_one_id_is_refused_whatever_the_texts(dataset: list[str] | None, tokenizer: str, kept: Path) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size is 1; (?s:.*)at least 2 ids(?s:.*)nothing to learn"):
        load(1, dataset, kept, tokenizer=tokenizer)
    assert len(load(2, dataset, kept, tokenizer="auto")) <= 2


@pytest.mark.parametrize("dataset", [[], [""] * 20])
def test_empty_texts_are_no_corpus(dataset: list[str], kept: Path) -> None:
    made = load(700, dataset, kept)
    assert len(made) == 700
    assert "there is no text to train on" in made.findings[0].reason
    begins_late = load(700, [""] * 20 + TEXTS, kept)
    assert said(begins_late)["tokenizer"].startswith("byte-level BPE")


class Frame:
    """What a pandas DataFrame does: it iterates over the names of its columns."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self._values = list(columns), columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def to_dict(self, orient: str) -> dict[str, list[Any]]:
        assert orient == "list"
        return self._values


def test_a_frame_is_its_texts_and_not_the_names_of_its_columns(kept: Path) -> None:
    frame = Frame({"text": TEXTS, "label": list(range(len(TEXTS)))})
    assert load(300, frame, kept).get_vocab() == load(300, {"text": TEXTS}, kept).get_vocab()
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=300, exact=False))
    assert trainer.train_on_dataset(frame).get_vocab() == trainer.train_on_dataset(TEXTS).get_vocab()


def test_names_of_files_are_not_learnt_as_text(tmp_path: Path) -> None:
    names = [tmp_path / f"corpus_{n}.txt" for n in range(3)]
    for name in names:
        name.write_text("some text of it\n" * 20)
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=262, exact=False))
    with pytest.raises(TokenizerError, match="names of 3 files"):
        trainer.train_on_dataset([str(name) for name in names])
    assert len(trainer.train_on_dataset(names)) == 262
    trainer.train_on_dataset([str(names[0]), "and a text"])  # not all of them are
