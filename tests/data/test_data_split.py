"""The split: by content, stable, never empty on either side; a single text gives its last part."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import DataError, TokenizerError
from anyformer.data import build_token_cache, open_corpus, split_finding, train_texts
from anyformer.data.cache import _fingerprint
from anyformer.data.split import split_pieces
from anyformer.tokenization import CharacterLevelTokenizer

DOCUMENTS = [f"document number {n}" for n in range(500)]


def held_out(documents: list[str], val_split: float = 0.1) -> list[str]:
    return [p.text for p in split_pieces(open_corpus(documents), val_split, None) if p.side == "val"]


def test_held_out_is_a_function_of_the_content() -> None:
    expected = [d for d in DOCUMENTS if int(hashlib.sha256(d.encode()).hexdigest()[:16], 16) / 2**64 < 0.1]
    assert held_out(DOCUMENTS) == expected
    assert 25 < len(expected) < 75
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
    assert set(held_out(shuffled)) == set(expected)


def test_documents_keep_their_side_when_others_are_added() -> None:
    more = DOCUMENTS + [f"another {n}" for n in range(300)]
    assert set(held_out(DOCUMENTS)) == set(held_out(more)) & set(DOCUMENTS)
    assert set(held_out(DOCUMENTS)) <= set(held_out(DOCUMENTS, 0.2))


@pytest.mark.parametrize("val_split", [1e-9, 0.01, 0.99, 1 - 1e-9])
def test_neither_side_is_empty(val_split: float) -> None:
    for count in (2, 3, 5):
        held = held_out(DOCUMENTS[:count], val_split)
        assert 0 < len(held) < count


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match="its 3 documents are all the same"):
        held_out(["same"] * 3)


def test_a_single_text_gives_its_last_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {n}\n" for n in range(30_000))
    path.write_text(text)
    corpus = open_corpus(path)
    pieces = list(split_pieces(corpus, 0.1, None))
    train = "".join(p.text for p in pieces if p.side == "train")
    val = "".join(p.text for p in pieces if p.side == "val")
    assert train + val == text
    assert train.endswith("\n")
    assert len(val) / len(text) == pytest.approx(0.1, abs=0.001)
    assert not any(p.marked for p in pieces)
    assert "".join(train_texts(corpus, 0.1)) == train
    assert split_finding(corpus, 0.1, None).measured.startswith("the last 10.0% of the text")


def test_first_ninety_percent_of_real_text(real_data: Path) -> None:
    corpus = open_corpus(real_data / "tinyshakespeare" / "input.txt")
    train = sum(len(text) for text in train_texts(corpus, 0.1))
    assert train == pytest.approx(1_003_854, abs=100)  # nanoGPT's int(0.9 * n), moved to the end of a line


def test_held_out_text_of_its_own() -> None:
    train, val = open_corpus(DOCUMENTS[:10]), open_corpus(["held out"])
    pieces = list(split_pieces(train, 0.1, val))
    assert [p.text for p in pieces if p.side == "train"] == DOCUMENTS[:10] == list(train_texts(train, 0.1, val))
    assert [p.text for p in pieces if p.side == "val"] == ["held out"]


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    tokenizer = CharacterLevelTokenizer(300)
    train, val = open_corpus([*DOCUMENTS, DOCUMENTS[3]]), open_corpus([*DOCUMENTS[:7], "another"])
    assert [p.text for p in split_pieces(train, 0.1, val) if p.side == "train"] == DOCUMENTS[7:]
    assert list(train_texts(train, 0.1, val)) == DOCUMENTS[7:]
    cache = build_token_cache(train, tokenizer, val_corpus=val, cache_dir=tmp_path)
    assert cache.meta["train"]["documents"] == 493
    assert cache.meta["val"]["documents"] == 8
    (warning,) = [finding for finding in cache.findings if finding.name == "shared texts"]
    assert (warning.verdict, warning.measured) == ("warn", "8 left out of the training text")
    # a cache from when they were left in has another name
    assert _fingerprint(train, tokenizer, 0.1, val, 0) != cache.meta["fingerprint"]
    apart = build_token_cache(open_corpus(DOCUMENTS[7:]), tokenizer, val_corpus=val, cache_dir=tmp_path)
    assert "shared texts" not in [finding.name for finding in apart.findings]
    assert apart.train.tobytes() == cache.train.tobytes()
    for hidden in ([*DOCUMENTS, "more"], DOCUMENTS):
        with pytest.raises(DataError, match="the held-out text is the training text"):
            build_token_cache(open_corpus(DOCUMENTS), tokenizer, val_corpus=open_corpus(hidden), cache_dir=tmp_path)


def test_all_on_one_side() -> None:
    corpus = open_corpus(DOCUMENTS)
    assert {p.side for p in split_pieces(corpus, 0.0, None)} == {"train"}
    assert {p.side for p in split_pieces(corpus, 1.0, None)} == {"val"}
    with pytest.raises(DataError, match=r"val_split is 1\.5"):
        list(split_pieces(corpus, 1.5, None))


@pytest.mark.parametrize("val_split", ["0.1", None, -0.1, 1.5, float("nan"), True])
def test_what_is_no_share(val_split: Any, tmp_path: Path) -> None:
    for use in (
        lambda: split_finding(open_corpus(DOCUMENTS), val_split, None),
        lambda: held_out(DOCUMENTS, val_split),
        lambda: build_token_cache(
            open_corpus(DOCUMENTS), CharacterLevelTokenizer(300), val_split=val_split, cache_dir=tmp_path
        ),
    ):
        with pytest.raises(DataError, match=f"val_split is {val_split!r}; it must be"):
            use()


@pytest.mark.parametrize("thing", [None, "gpt2", CharacterLevelTokenizer(300).backend_tokenizer])
def test_what_is_no_tokenizer(thing: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer is .*no tokenizer of Hugging Face's kind"):
        build_token_cache(open_corpus(DOCUMENTS), thing, cache_dir=tmp_path)


def test_too_short_to_split() -> None:
    with pytest.raises(DataError, match="too short to hold out"):
        list(split_pieces(open_corpus(["a"]), 0.1, None))
