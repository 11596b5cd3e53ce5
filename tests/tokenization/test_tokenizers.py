"""Byte-level BPE and characters: every string survives, as in transformers and as the reference uses them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from anyformer.core.errors import TokenizerError
from anyformer.tokenization import (
    SPECIAL_TOKENS,
    BPETrainerConfig,
    CharacterLevelTokenizer,
    EncodedIds,
    FastBPETrainer,
    TextTokenizer,
    encode_texts,
    id_count,
    load_tokenizer,
)

TEXTS = [f"The {n}th line isn't like the other lines, it's café number {n}.\n" for n in range(300)]
HARD = [
    "",
    " ",
    "  two  spaces , and . punctuation !  ",
    "tab\tnewline\n\r\ncontrol\x00\x01\x7f",
    "e\u0301 combining, ﷽ ligature, שלום عربى right to left",
    "世界 😀 👨‍👩‍👧 \U0010ffff \ufeff",
    "</s><pad> <unk>text<s>",
    "<0x41> <0xE4><0xB8>",
    "Ġ Ċ ▁ <|endoftext|>",
]


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return FastBPETrainer(BPETrainerConfig(vocab_size=500)).train_on_dataset(TEXTS)


@pytest.fixture(scope="module")
def characters() -> TextTokenizer:
    return CharacterLevelTokenizer(400, texts=TEXTS)


@pytest.fixture(params=["bpe", "characters"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    found: TextTokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("text", HARD)
def test_round_trip(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(encode_texts(tokenizer, [text])[0]) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_every_string_round_trips(bpe: TextTokenizer, characters: TextTokenizer, text: str) -> None:
    for tokenizer in (bpe, characters, CharacterLevelTokenizer(260, texts=["x"])):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < len(tokenizer) for i in ids)


def test_encode_as_the_reference_uses_it(tokenizer: TextTokenizer) -> None:
    encoded = tokenizer.encode("Hello 世界!", max_length=64, padding="max_length")
    assert isinstance(encoded, EncodedIds)
    assert isinstance(encoded, list)
    assert len(encoded) == 64 == len(encoded["attention_mask"])
    kept = sum(encoded["attention_mask"])
    assert encoded["attention_mask"] == [1] * kept + [0] * (64 - kept)
    assert encoded["input_ids"] == list(encoded)
    assert set(encoded[kept:]) == {tokenizer.pad_token_id}
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "Hello 世界!"
    with pytest.raises(KeyError, match="labels"):
        encoded["labels"]


def test_truncation_and_tensors_as_transformers_has_them(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "The 5th line isn't like the others"
    options: list[dict[str, Any]] = [
        {},
        {"max_length": 5, "truncation": True},
        {"max_length": 5},
        {"max_length": 50, "padding": "max_length"},
        {"max_length": 50, "padding": "max_length", "padding_side": "left"},
        {"padding": True, "pad_to_multiple_of": 16},
        {"add_special_tokens": False},
        {"text_pair": "and another"},
    ]
    for chosen in options:
        ours = tokenizer.encode(text, **chosen)
        assert list(ours) == theirs.encode(text, **chosen)
        assert ours["attention_mask"] == theirs(text, **chosen)["attention_mask"] or "max_length" in chosen
    assert torch.equal(tokenizer.encode(text, return_tensors="pt"), theirs.encode(text, return_tensors="pt"))
    batch = tokenizer([text, "short"], padding=True, return_tensors="pt")
    expected = theirs([text, "short"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == [text, "short"]


def test_batch_encode(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["The 5th line isn't like the others", "short", ""]
    options: list[dict[str, Any]] = [
        {},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 9, "truncation": True, "add_special_tokens": False},
    ]
    for chosen in options:
        ours, expected = tokenizer.batch_encode(texts, **chosen), theirs(texts, **chosen)
        for name in ("input_ids", "attention_mask"):
            assert (
                torch.equal(ours[name], expected[name]) if "return_tensors" in chosen else ours[name] == expected[name]
            )


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("hello", r"texts is one string: 'hello'\n.*a row\n.*batch_encode\(\['hello'\]\), or encode\('hello'\)"),
        (b"hello", "texts is b'hello'"),
        ({"text": "hello"}, "dict"),
        (7, r"texts is 7 \(int\)\n  → give a list of strings"),
        (["a", None], r"text 1 is None \(NoneType\)\n  → give a list of strings"),
        ([], "the list is empty"),
    ],
)
def test_what_is_no_batch(tokenizer: TextTokenizer, texts: Any, says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        tokenizer.batch_encode(texts)


def test_batches_of_other_kinds(tokenizer: TextTokenizer) -> None:
    expected = tokenizer.batch_encode(["a b", "c"])["input_ids"]
    for texts in (("a b", "c"), (text for text in ("a b", "c")), {"a b": 1, "c": 2}.keys()):
        assert tokenizer.batch_encode(texts)["input_ids"] == expected  # type: ignore[arg-type]


def test_every_kind_pads(real_data: Path) -> None:
    ends = ["<s>", "</s>"]
    kinds = [
        load_tokenizer(real_data / "gpt2"),
        FastBPETrainer(BPETrainerConfig(300, special_tokens=ends)).train_on_dataset(TEXTS),
        CharacterLevelTokenizer(300, special_tokens=ends),
    ]
    for kind in kinds:
        encoded = kind.encode("Hello", max_length=16, padding="max_length")
        kept = sum(encoded["attention_mask"])
        assert kept == len(kind.encode("Hello"))
        assert set(encoded[kept:]) == {kind.eos_token_id}


def test_no_special_tokens_of_its_own(tokenizer: TextTokenizer) -> None:
    assert not set(tokenizer.encode("plain text")) & set(tokenizer.all_special_ids)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        0,
        1,
        2,
        3,
    )


@pytest.mark.parametrize(
    "load", [AutoTokenizer.from_pretrained, PreTrainedTokenizerFast.from_pretrained, load_tokenizer]
)
def test_saved_folder_loads_everywhere(tokenizer: TextTokenizer, tmp_path: Path, load: Any) -> None:
    tokenizer("x", truncation=True, max_length=1, padding="max_length")  # such a state must not be saved
    tokenizer.save_pretrained(tmp_path / "folder")
    # a class that every transformers knows, not ours
    assert json.loads((tmp_path / "folder/tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    loaded = load(tmp_path / "folder")
    assert len(loaded) == len(tokenizer)
    assert loaded.eos_token_id == 3
    for text in HARD:
        assert list(loaded.encode(text)) == list(tokenizer.encode(text))
        assert loaded.decode(loaded.encode(text)) == text


def test_one_file(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new folder" / "tokenizer.json")
    for place in (tmp_path / "new folder" / "tokenizer.json", tmp_path / "new folder"):
        loaded = load_tokenizer(place)
        assert isinstance(loaded, TextTokenizer)
        assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "</s>")
        assert [list(loaded.encode(t)) for t in HARD] == [list(tokenizer.encode(t)) for t in HARD]
    with pytest.raises(TokenizerError, match="is a folder"):
        tokenizer.save(tmp_path)


def test_copies(tokenizer: TextTokenizer) -> None:
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode("a café 😀") == tokenizer.encode("a café 😀")
    encoded = tokenizer.encode("abc")
    assert pickle.loads(pickle.dumps(encoded))["attention_mask"] == [1] * len(encoded)


def test_text_that_is_not_unicode(tokenizer: TextTokenizer) -> None:
    for encode in (tokenizer.encode, lambda text: encode_texts(tokenizer, [text])):
        with pytest.raises(TokenizerError, match=r"not valid Unicode: '\\ud800' at character 2"):
            encode("ab\ud800c")


# --- byte-level BPE ---


def test_bpe_size(bpe: TextTokenizer) -> None:
    assert len(bpe) == id_count(bpe) == 500
    for size in (260, 300, 333):
        assert len(FastBPETrainer(BPETrainerConfig(vocab_size=size)).train_on_dataset(TEXTS)) == size


def test_a_short_text_gives_a_smaller_tokenizer() -> None:
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=8192, exact=False))
    tokenizer = trainer.train_on_dataset(["a short text, a short text"])
    assert 260 < len(tokenizer) < 300
    assert trainer.findings[0].measured == f"asked 8,192, the text gave {len(tokenizer)}"


def test_min_frequency() -> None:
    def learnt(least: int) -> set[str]:
        config = BPETrainerConfig(vocab_size=1000, min_frequency=least, exact=False)
        return set(FastBPETrainer(config).train_on_dataset(["qx qx qx zw zw"]).get_vocab())

    assert {"qx", "zw"} <= learnt(2)
    assert "qx" in learnt(3)
    assert "zw" not in learnt(3)


def test_merges_are_the_most_frequent_pairs() -> None:
    """The first merge, counted by hand: pairs within GPT-2's words, ties to the smaller ids."""
    text = "low low low lower lowest newest newest newest newest newest newest widest widest widest"
    tokenizer = FastBPETrainer(BPETrainerConfig(vocab_size=262, special_tokens=[])).train_on_dataset([text])
    merges = [tuple(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert merges[0] == ("e", "s")  # 1 + 6 + 3 times, as "s t"; e-s first by id
    assert merges[1] == ("es", "t")


def test_special_tokens_of_the_user() -> None:
    config = BPETrainerConfig(vocab_size=300, special_tokens=["<pad>", "<|endoftext|>", "<think>"])
    tokenizer = FastBPETrainer(config).train_on_dataset(TEXTS)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.unk_token is None
    assert tokenizer.encode("<think>") == [2]
    assert 2 in tokenizer.all_special_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 259}, "at least 260"),
        ({"vocab_size": 300, "special_tokens": ["<a>", "<a>"]}, "given twice"),
        ({"vocab_size": 300, "special_tokens": "<pad>"}, "must be a list"),
        ({"vocab_size": 300, "special_tokens": [""]}, "non-empty"),
        ({"vocab_size": 300, "min_frequency": 0}, "min_frequency is 0"),
        ({"vocab_size": "300"}, r"vocab_size is '300' \(str\)"),
        ({"vocab_size": 300.0}, "must be a whole number"),
        ({"vocab_size": 300, "min_frequency": None}, "min_frequency is None"),
        ({"vocab_size": 300, "special_tokens": None}, "must be a list"),
    ],
)
def test_bad_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        BPETrainerConfig(**options)


def test_bad_texts() -> None:
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=300))
    for texts, message in (([], "no text"), ([""], "no text"), ("abc", "one string"), (["a", None], "text 1 is None")):
        with pytest.raises(TokenizerError, match=message):
            trainer.train_on_dataset(texts)  # type: ignore[arg-type]


def test_gpt2_ids(real_data: Path) -> None:
    """Published ids of GPT-2's tokenizer (README of openai/gpt-2 and the examples of tiktoken)."""
    tokenizer = load_tokenizer(real_data / "gpt2")
    assert len(tokenizer) == 50257
    assert tokenizer.eos_token_id == 50256
    assert list(tokenizer.encode("Hello world")) == [15496, 995]
    assert list(tokenizer.encode("hello world")) == [31373, 995]
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# --- characters ---


def test_character_ids_most_frequent_first() -> None:
    tokenizer = CharacterLevelTokenizer(300, texts=["bbbaac", "d" * 9])
    assert tokenizer.convert_ids_to_tokens(list(range(260, 264))) == ["d", "b", "a", "c"]
    assert len(tokenizer) == 264
    assert [f.measured for f in tokenizer.findings] == ["asked 300, the text gave 264", "written as their UTF-8 bytes"]


@pytest.mark.parametrize("size", [100, 260, 1000, 20_000])
def test_characters_without_texts(size: int) -> None:
    tokenizer = CharacterLevelTokenizer(vocab_size=size)
    assert len(tokenizer) == size
    text = "Hello World!" if size == 260 else "Hello World! ~"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if size != 260:
        assert len(tokenizer.encode(text)) == len(text)
    if size == 20_000:
        assert len(tokenizer.encode("Ω Ж ש")) == 5


def test_a_large_character_vocabulary() -> None:
    tokenizer = CharacterLevelTokenizer(vocab_size=500_000)
    assert len(tokenizer) == 500_000
    text = "Hello 世界! 😀"
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_small_vocabulary_gives_unknown() -> None:
    tokenizer = CharacterLevelTokenizer(7, texts=["aaabbbccd"])
    assert tokenizer.get_vocab().keys() == {*SPECIAL_TOKENS, "a", "b", "c"}
    assert tokenizer.decode(tokenizer.encode("abcdd")) == "abc<unk><unk>"
    finding = tokenizer.findings[0]
    assert finding.verdict == "warn"
    assert finding.measured == "become <unk>: 11 % of the text, 1 different one"  # the d of nine characters
    assert finding.reason.endswith("a vocabulary of 8 holds them, of a model that is built for so many ids")
    assert CharacterLevelTokenizer(8, texts=["aaabbbccd"]).findings[0].measured == "become <unk>"
    many = CharacterLevelTokenizer(10, texts=["".join(map(chr, range(0x4E00, 0x4E00 + 1000)))])
    assert many.findings[0].reason.endswith(
        "a vocabulary of 260 holds them, of a model that is built for so many ids"
    )  # 256 bytes and four special tokens


def test_without_unknown_and_bytes_it_refuses() -> None:
    tokenizer = CharacterLevelTokenizer(3, special_tokens=[], texts=["abc"])
    assert len(tokenizer) == 3
    assert tokenizer.eos_token_id is None
    assert tokenizer.decode(tokenizer.encode("cabcab")) == "cabcab"
    for encode in (
        tokenizer.encode,
        tokenizer,
        lambda text: tokenizer([text]),
        lambda text: encode_texts(tokenizer, [text]),
    ):
        with pytest.raises(TokenizerError, match=r"no id for 'é' \(U\+00E9\)"):
            encode("abé")


def test_a_token_that_was_added_is_known_within_itself_only() -> None:
    tokenizer = CharacterLevelTokenizer(4, special_tokens=["<p>"], texts=["abc"])
    refused = ["é", "p", "<p", "xy"]
    for text in refused:  # the alphabet is asked for before anything is added
        with pytest.raises(TokenizerError, match="no id for"):
            tokenizer.encode(text)
    assert tokenizer.encode("a<p>b") == [1, 0, 2]
    tokenizer.add_tokens(["é", "xy"])
    for encode in (tokenizer.encode, lambda text: encode_texts(tokenizer, [text])[0]):
        assert encode("éaxybé") == [4, 1, 5, 2, 4]
        for text in ("p", "axb", "xéy"):
            with pytest.raises(TokenizerError, match=f"no id for '{text.strip('abé')[0]}'"):
                encode(text)
    tokenizer.split_special_tokens = True
    with pytest.raises(TokenizerError, match="no id for '<'"):
        tokenizer.encode("a<p>b")


def test_characters_of_other_texts(tmp_path: Path) -> None:
    texts = ["hello world", "hell é"]
    made = CharacterLevelTokenizer(100_000)
    made.save_pretrained(tmp_path)
    expected = CharacterLevelTokenizer(300, texts=texts)
    for old in (made, load_tokenizer(tmp_path)):
        for kind in (texts, iter(texts), [texts], (batch for batch in ([texts[0]], (texts[1],))), {"text": texts}):
            new = old.train_new_from_iterator(kind, 300)
            assert isinstance(new, CharacterLevelTokenizer)
            assert new.get_vocab() == expected.get_vocab()
            assert new.special_tokens_map == expected.special_tokens_map
            assert new.decode(new.encode("ñ 世")) == "ñ 世"
    small = made.train_new_from_iterator(
        texts, 20, new_special_tokens=["<mask>"], special_tokens_map={"<pad>": "nothing", "<unk>": "[UNK]"}
    )
    assert small.convert_ids_to_tokens(list(range(7))) == ["nothing", "[UNK]", "<s>", "</s>", "<mask>", "l", " "]
    assert (small.pad_token, small.unk_token, small.mask_token) == ("nothing", "[UNK]", "<mask>")
    assert small.convert_ids_to_tokens(small.encode("qh")) == ["[UNK]", "h"]
    cases: tuple[tuple[tuple[Any, int], dict[str, Any], str], ...] = (
        (("hello", 300), {}, "texts is one string"),
        (([3], 300), {}, "text 0 is 3"),
        ((texts, 3), {}, "leave no room"),
        ((texts, 300), {"special_tokens_map": {"<unk>": "??"}}, "no name of an unknown token"),
        ((texts, 300), {"min_frequency": 2}, "no trainer with min_frequency"),
    )
    for arguments, options, says in cases:
        with pytest.raises(TokenizerError, match=says):
            made.train_new_from_iterator(*arguments, **options)


def test_a_bpe_of_other_texts(bpe: TextTokenizer) -> None:
    new = bpe.train_new_from_iterator([["the other line is a line"] * 9], 270)
    assert isinstance(new, TextTokenizer)
    assert (len(new), new.pad_token, new.eos_token_id) == (270, "<pad>", 3)
    assert new.decode(new.encode("the é 世")) == "the é 世"


def test_bad_character_tokenizers() -> None:
    for size, options, message in (
        (4, {}, "leave no room"),
        (0, {"special_tokens": []}, "leave no room"),
        (300, {"texts": []}, "no text"),
        (300, {"texts": "abc"}, "one string"),
        (300, {"texts": ["\udc00"]}, "not valid Unicode"),
    ):
        with pytest.raises(TokenizerError, match=message):
            CharacterLevelTokenizer(size, **options)  # type: ignore[arg-type]


def test_character_tokenizer_from_pretrained(characters: TextTokenizer, tmp_path: Path) -> None:
    characters.save_pretrained(tmp_path)
    loaded = CharacterLevelTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, TextTokenizer)
    assert loaded.encode("café 😀") == characters.encode("café 😀")


# --- files of the user's own ---


def test_one_file_of_a_vocabulary_in_parts(real_data: Path, tmp_path: Path) -> None:
    for folder, names in (("gpt2", ("vocab.json", "merges.txt")), ("bert-base-uncased", ("vocab.txt",))):
        whole = load_tokenizer(real_data / folder)
        for name in names:
            assert load_tokenizer(real_data / folder / name).get_vocab() == whole.get_vocab()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(TokenizerError, match="is not a tokenizer file"):  # its merges are missing
        load_tokenizer(tmp_path / "vocab.json")


@pytest.mark.parametrize("path", ["", None, 5])
def test_what_is_no_path_of_a_tokenizer(path: Any) -> None:
    with pytest.raises(TokenizerError, match="is no path of a tokenizer"):
        load_tokenizer(path)


def test_a_vocabulary_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("[UNK]\ncafé\n".encode("latin-1"))
    with pytest.raises(TokenizerError, match=r"vocab\.txt is not UTF-8: byte 0xe9 at offset 9"):
        load_tokenizer(tmp_path)
