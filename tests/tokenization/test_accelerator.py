"""Which text the optional accelerator is given."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.tokenization import BPETrainerConfig, FastBPETrainer, accelerator, encoding

WORDS = ["word", "    ", "\n        ", "def", " ", "(x)", "é", "'s", "世界", " a"]


@pytest.fixture(scope="module")
def bpe() -> Any:
    text = ["def word(x):\n        return 'title' if x else \"it's\"\n\n\tso 12 the page é 世界" * 3] * 9
    return FastBPETrainer(BPETrainerConfig(vocab_size=300)).train_on_dataset(text)


def long_text(seed: int, size: int = 90_000) -> str:
    return "".join(random.Random(seed).choices(WORDS, k=size // 3))


@pytest.mark.parametrize("seed", range(4))
def test_the_ids_of_the_parts_in_a_row_are_those_of_the_whole(bpe: Any, seed: int) -> None:
    text = long_text(seed)
    parts = accelerator.cut(text)
    assert parts is not None
    assert len(parts) > 3
    assert "".join(parts) == text
    assert max(map(len, parts)) <= accelerator.LONGEST
    backend = bpe.backend_tokenizer
    whole = backend.encode(text, add_special_tokens=False).ids
    assert [i for part in parts for i in backend.encode(part, add_special_tokens=False).ids] == whole


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.text(min_size=1, max_size=12), st.text(max_size=12))
def test_a_word_after_a_single_space_begins_anew(bpe: Any, before: str, after: str) -> None:
    """By the library alone: where ``cut`` cuts, nothing reaches over."""
    text = f"{before} {after}"
    at = len(before)
    if not accelerator._AFTER_WORD.match(text, at):
        return
    ids = [bpe.backend_tokenizer.encode(part, add_special_tokens=False).ids for part in (text, text[:at], text[at:])]
    assert ids[0] == ids[1] + ids[2]


def test_a_short_text_is_left_whole_and_one_without_spaces_has_no_parts() -> None:
    assert accelerator.cut("a b") == ["a b"]
    assert accelerator.cut("é" * accelerator.LONGEST) == ["é" * accelerator.LONGEST]
    assert accelerator.cut("a" * (accelerator.LONGEST + 1)) is None
    assert accelerator.cut("a  " * accelerator.LONGEST) is None


@pytest.mark.parametrize("text", ["a\n\n\x0cb", "  \x0b", "x\t'title'", "Ⓐ's"])
def test_what_it_errs_in_is_known(text: str) -> None:
    assert accelerator.errs(text)
    assert not accelerator.errs("it's a\ttab, é's, 世's and\r\n'title'")


def test_only_the_kind_that_was_measured_is_known(bpe: Any) -> None:
    state = json.loads(bpe.backend_tokenizer.to_str())
    assert accelerator.is_known(json.dumps(state))
    others: list[dict[str, Any]] = [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**state["pre_tokenizer"], "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {**state["model"], "type": "WordPiece"}},
        {"added_tokens": [{**state["added_tokens"][0], "lstrip": True}]},
        {"added_tokens": [{**state["added_tokens"][0], "content": "a b"}]},
    ]
    for other in others:
        assert not accelerator.is_known(json.dumps({**state, **other}))


def test_the_real_one_gives_the_librarys_ids_where_it_is_used(bpe: Any) -> None:
    pytest.importorskip("tokie")
    encode, finding = encoding.accelerated_encode(bpe, ["some text"])
    assert encode is not None, finding
    rng = random.Random(1)
    signs = ["\x0b", "\x0c", "\n", "\n\n", "  ", " ", "\t", "'", "'s", "'t", "a", "Ⓐ", "é", "\r", "1", ".", "</s>"]
    texts = ["".join(rng.choices(signs, k=rng.randint(1, 9))) for _ in range(4000)]
    texts += [long_text(seed) for seed in range(3)] + [
        "x" * 70_000,
        "é \x0c",
        "",
        " " * 10_000,
        "a " + "=" * 12_000,
        "acgt" * 3_000,
    ]
    expected, got = encoding.library_encode(bpe)(texts), encode(texts)
    assert np.array_equal(got.lengths, expected.lengths)
    assert np.array_equal(got.ids, expected.ids)


class PanicException(BaseException):
    """As native code raises it."""


def test_native_code_that_fails_is_a_mismatch(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokie = pytest.importorskip("tokie")

    class Tokenizer:
        panics = False

        @staticmethod
        def from_json(path: str) -> Any:
            return Tokenizer()

        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool) -> Any:
            if Tokenizer.panics:
                raise PanicException("index out of bounds")
            return encoding.library_encode(bpe)(texts)

    monkeypatch.setattr(tokie, "Tokenizer", Tokenizer)
    encode, _ = encoding.accelerated_encode(bpe, ["some text"])
    assert encode is not None
    Tokenizer.panics = True
    with pytest.raises(encoding.EncoderMismatch, match="index out of bounds"):
        encode(["a b"])


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.text(max_size=12), st.sampled_from("az09!'~é世"), st.sampled_from(" \n"), st.text(max_size=12))
def test_nothing_reaches_from_a_visible_sign_to_white_space(
    bpe: Any, before: str, sign: str, space: str, after: str
) -> None:
    """By the library alone: where its own long texts are cut."""
    backend = bpe.backend_tokenizer
    assert accelerator.BEFORE_SPACE.match(f"{sign}{space}", 1)
    parts = (before + sign, space + after)
    whole = backend.encode("".join(parts), add_special_tokens=False).ids
    assert [i for part in parts for i in backend.encode(part, add_special_tokens=False).ids] == whole


@pytest.mark.parametrize("way", ["here", "process"])
def test_long_texts_have_the_same_ids_in_parts_and_few_at_once(bpe: Any, monkeypatch: Any, way: str) -> None:
    monkeypatch.setattr(encoding, "_LONG", 500)
    monkeypatch.setattr(encoding, "_AT_ONCE", 2_000)
    texts = ["", "short", long_text(5, 9_000), "x" * 1_200, long_text(6, 3_000), ""]
    assert len(encoding._cut(texts[2])) > 9
    if way == "here":
        got = encoding.library_encode(bpe)(texts)
    else:
        with encoding.EncoderPool(bpe, 1) as pool:
            got = pool.encode(texts)
    whole = [bpe.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert got.lengths.tolist() == [*map(len, whole)]
    assert got.ids.tolist() == [i for ids in whole for i in ids]


def test_a_part_ends_where_it_may_and_the_rest_stays_whole(monkeypatch: Any) -> None:
    monkeypatch.setattr(encoding, "_LONG", 4)
    assert encoding._cut("abcdefgh ij") == ["abcdefgh", " ij"]  # the first place after four characters
    assert encoding._cut("a b c d") == ["a b c d"]  # less than two parts
    assert encoding._cut("a" * 40) == ["a" * 40]
    assert encoding._cut("ab cd  ef gh" + "x" * 30) == ["ab cd", "  ef", " gh" + "x" * 30]


def test_text_that_it_mostly_errs_in_is_left_to_the_library_and_that_is_said(bpe: Any) -> None:
    pytest.importorskip("tokie")
    clean, page = "def word(x) is true\n" * 20, "page\n\n\x0cbreak " * 20
    none, said = encoding.accelerated_encode(bpe, [page] * 3 + [clean])
    assert none is None
    assert "known to err in" in said.reason
    some, said = encoding.accelerated_encode(bpe, [clean] * 9 + [page])
    assert some is not None
    assert "goes to the library" in said.reason
