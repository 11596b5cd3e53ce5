"""Characters as tokens at any size: their order, the round trip from 256 bytes on, ``<unk>`` below, large ones."""

from __future__ import annotations

import types
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.view import QuietView
from anyformer.tokenization import CharacterLevelTokenizer, TextTokenizer
from anyformer.tokenization.character import _code_points

TEXTS = ["bbbaac é世世\n", "d" * 9]
SPECIALS = ["<pad>", "<unk>", "<s>", "</s>"]


def plain_text() -> st.SearchStrategy[str]:
    """Texts without a special token, which is one id wherever it stands."""
    return st.text().filter(lambda text: not any(token in text for token in SPECIALS))


@pytest.fixture(scope="module")
def all_assigned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, Any]:
    """The tokenizer, and what AutoTokenizer loads of it."""
    folder = tmp_path_factory.mktemp("large")
    made = CharacterLevelTokenizer(200_000)
    made.save_pretrained(folder)
    return made, AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=plain_text())
def test_more_entries_than_characters_that_are_assigned(all_assigned: tuple[TextTokenizer, Any], text: str) -> None:
    made, loaded = all_assigned
    assert len(made) == len(loaded) == 200_000
    ids = made.encode(text)
    assert list(loaded.encode(text)) == list(ids)
    assert loaded.decode(ids) == made.decode(ids) == text
    known = [c for c in text if unicodedata.category(c) not in ("Cn", "Co")]
    if len(known) == len(text):  # all characters that Unicode assigns have an id of their own
        assert len(ids) == len(text)


def test_all_of_unicode_once_printable_ascii_first() -> None:
    characters = list(_code_points())
    assert len(characters) == len(set(characters)) == 0x110000 - 0x800  # all code points but surrogates
    assert not any("\ud800" <= c <= "\udfff" for c in characters)
    assert {*characters[:98]} == {*map(chr, range(0x20, 0x7F)), "\n", "\t", "\r"}


def test_more_entries_than_unicode_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.tokenization.character.sys", types.SimpleNamespace(maxunicode=0x2FF))
    tokenizer = CharacterLevelTokenizer(2000)
    assert len(tokenizer) == 260 + 0x300
    assert tokenizer.findings[0].measured == "asked 2,000, Unicode has 1,028"


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(), min_size=1).filter(any), size=st.integers(5, 330), other=plain_text())
def test_any_size_and_text(texts: list[str], size: int, other: str) -> None:
    tokenizer = CharacterLevelTokenizer(size, texts=texts, view=QuietView())
    counted = Counter("".join(texts))
    first = 260 if size >= 260 else 4
    characters = tokenizer.convert_ids_to_tokens(list(range(first, len(tokenizer))))
    assert len(tokenizer) == min(size, first + len(counted))
    assert characters == sorted(counted, key=lambda c: (-counted[c], c))[: size - first]
    if size >= 260:
        assert tokenizer.decode(tokenizer.encode(other)) == other
    else:
        read = [c if c in characters else "<unk>" for c in other]
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(other)) == read
        assert {f.name: f for f in tokenizer.findings}["unknown characters"].measured.startswith("become <unk>")


@pytest.mark.parametrize("size", [9, 300, 200_000])
def test_a_special_token_in_a_text_is_one_id(size: int, all_assigned: tuple[TextTokenizer, Any]) -> None:
    made = all_assigned[0] if size == 200_000 else CharacterLevelTokenizer(size, texts=["abk<nu>"], view=QuietView())
    for token in SPECIALS:
        ids = made.encode(f"a{token}b{token}")
        assert made.convert_ids_to_tokens(ids) == ["a", token, "b", token]
        assert made.decode(ids) == f"a{token}b{token}"
        assert made.decode(ids, skip_special_tokens=True) == "ab"
    assert len(made.encode("<unk")) == 4  # a part of it is characters


def test_unknown_characters_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    CharacterLevelTokenizer(100)
    assert capsys.readouterr().err.count("unknown characters: become <unk> — 256 bytes") == 1
    CharacterLevelTokenizer(259, texts=TEXTS)
    assert capsys.readouterr().err.count("unknown characters: become <unk>") == 1
    CharacterLevelTokenizer(100, special_tokens=[])
    assert capsys.readouterr().err.count("unknown characters: are refused with an error") == 1
    CharacterLevelTokenizer(260)
    CharacterLevelTokenizer(100, view=QuietView())
    assert capsys.readouterr().err == ""

    class Heard(QuietView):
        def __init__(self) -> None:
            self.findings: list[Finding] = []

        def finding(self, finding: Finding) -> None:
            self.findings.append(finding)

    heard = Heard()
    made = CharacterLevelTokenizer(7, texts=["aaabbbccd"], view=heard)
    assert heard.findings == [f for f in made.findings if f.name == "unknown characters"]
    assert heard.findings[0].verdict == "warn"
    assert capsys.readouterr().err == ""


def test_a_special_token_of_one_character_is_one_entry() -> None:
    tokenizer = CharacterLevelTokenizer(300, special_tokens=["<unk>", "|"], texts=["a|b||"])
    assert tokenizer.get_vocab()["|"] == 1
    assert sorted(tokenizer.get_vocab().values()) == list(range(260))
    assert tokenizer.encode("a|b") == [258, 1, 259]
    for size in (100, 400):
        filled = CharacterLevelTokenizer(size, special_tokens=["<unk>", "|", "a"])
        assert sorted(filled.get_vocab().values()) == list(range(size))


def test_every_kind_of_texts(tmp_path: Path) -> None:
    expected = CharacterLevelTokenizer(300, texts=TEXTS).get_vocab()
    file = tmp_path / "text.txt"
    file.write_text("".join(TEXTS), encoding="utf-8")
    for texts in (iter(TEXTS), {"text": TEXTS}, datasets.Dataset.from_dict({"text": TEXTS}), file, [file]):
        assert CharacterLevelTokenizer(300, texts=texts).get_vocab() == expected
    for bad, message in ((["a", None], "text 1 is None"), (7, "texts is 7"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(TokenizerError, match=message):
            CharacterLevelTokenizer(300, texts=bad)


def test_as_the_reference_uses_it() -> None:
    tokenizer = CharacterLevelTokenizer(vocab_size=30_000, special_tokens=SPECIALS)
    assert len(tokenizer) == 30_000
    encoded = tokenizer.encode("Hello 世界!", max_length=512)
    assert len(encoded["input_ids"]) == 9
    assert tokenizer.decode(encoded["input_ids"]) == "Hello 世界!"


@pytest.mark.soak
def test_that_unicode_has_fewer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert CharacterLevelTokenizer(1_200_000).vocab_size < 1_200_000
    assert "tokenizer size: asked 1,200,000, Unicode has 1,112,324" in capsys.readouterr().err
