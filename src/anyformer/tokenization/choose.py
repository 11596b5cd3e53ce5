"""Which tokenizer a run uses, and why: the one mechanism behind training and ``AdaptiveTokenizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.view import QuietView
from anyformer.tokenization.base import PAD, SPECIAL_TOKENS, TextTokenizer, id_count, whole_number
from anyformer.tokenization.bpe import BPETrainerConfig, FastBPETrainer
from anyformer.tokenization.character import BYTES, CharacterLevelTokenizer, count_characters
from anyformer.tokenization.kept import Kept, fingerprint
from anyformer.tokenization.load import load_tokenizer
from anyformer.tokenization.pretrained import HUB, fits, load_from_hub, load_known, load_own

Strategy = Literal["pretrained", "train_bpe", "character", "user_upload"]
Texts = Callable[[], Iterable[str]]
"""Gives the texts anew at each call."""

# Below twice the bytes and special tokens, BPE has no room for merges to speak of.
BPE_FROM = 512
# 10 texts of 1,000 characters: 1 kB gave 287 merges (measured), most of them whole words seen twice.
FEW_TEXTS = 10
TEXT_CHARACTERS = 1000
# Special tokens by what losing them costs: unknown characters, the ends of documents, padding, beginnings.
_BY_IMPORTANCE = ("<unk>", "</s>", "<pad>", "<s>")


@dataclass(frozen=True)
class _Needs:
    """What a tokenizer made here must have."""

    tokens: tuple[str, ...]
    """Special tokens, whatever else finds no room."""
    padding: int | None = None
    """The id that the model keeps for padding, which is ``<pad>`` where the special tokens reach so far."""

    def specials(self, among: Sequence[str] | None = None) -> list[str]:
        """All special tokens, or those of them that find room, in the order of their ids."""
        wanted = [*SPECIAL_TOKENS, *(token for token in self.tokens if token not in SPECIAL_TOKENS)]
        tokens = [token for token in wanted if among is None or token in among or token in self.tokens]
        if self.padding is not None and PAD in tokens and self.padding < len(tokens):
            tokens.remove(PAD)
            tokens.insert(self.padding, PAD)
        return tokens


_SAMPLE = ("Hello, World! It's 2026:  naïve café.\n", "def f(x):\n    return {'a': [x, 2.5]}\n", "你好，世界 👋🏽")


def detect_strategy(vocab_size: int, dataset_size: int | None = None, own: str | Path | None = None) -> Strategy:
    """How a tokenizer for so many ids is had: "user_upload", "pretrained", "train_bpe" or "character".

    A file or folder of the user's own before all; then a known tokenizer of this size; then characters for fewer than
    512 ids or 10 texts; else BPE. dataset_size: texts, a long one counting once per 1,000 characters.
    """
    vocab_size = _positive(vocab_size)
    if own is not None:
        return "user_upload"
    return "pretrained" if fits(vocab_size) else _trained(vocab_size, dataset_size or 0)


def _positive(vocab_size: int) -> int:
    """The number as an int; TokenizerError where it is none, or below 1."""
    size = whole_number("vocab_size", vocab_size)
    if size < 1:
        raise TokenizerError(f"vocab_size is {size}; it must be positive")
    return size


def _there(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL byte, nobody's home
        return False


def _trained(vocab_size: int, dataset_size: int) -> Strategy:
    return "character" if vocab_size < BPE_FROM or dataset_size < FEW_TEXTS else "train_bpe"


def choose_tokenizer(
    setting: str,
    vocab_size: int,
    texts: Texts | None,
    needed: Sequence[str] = (),
    *,
    padding: int | None = None,
    cache_dir: str | Path | None = None,
    model: str | None = None,
) -> tuple[TextTokenizer, list[Finding]]:
    """The tokenizer for a model that takes ``vocab_size`` ids, and the findings that say why.

    setting: "auto" (the model's own, else a known tokenizer of this size from the hub or its local cache, else bpe,
    else char), "bpe", "char", "hf:OWNER/NAME", or the path of a file or folder.
    texts: gives the training texts anew at each call; None where there are none; not called for hub or path.
    needed: special tokens that a tokenizer trained here must have ("<mask>"), whatever else finds no room.
    padding: the id that the model keeps for padding: a tokenizer made here has ``<pad>`` there if it can.
    cache_dir: what was made is kept there, and found again by what it was made from.
    model: where the model came from, if its tokenizer may lie there: "hf:OWNER/NAME" or its folder.
    Raises TokenizerError where it cannot be built or has more ids than the model.
    """
    vocab_size = _positive(vocab_size)
    kept = Kept(Path(cache_dir).expanduser()) if cache_dir is not None else None
    needs = _Needs((*needed, *((PAD,) if padding is not None and PAD not in needed else ())), padding)
    if setting == "auto":
        tokenizer, found = _auto(vocab_size, texts, needs, kept, model)
    elif setting in ("bpe", "char"):
        kind: Strategy = "train_bpe" if setting == "bpe" else "character"
        tokenizer, found = _made(kind, vocab_size, texts, needs, kept, "asked for")
    elif setting.startswith(HUB) and not _there(setting.removeprefix(HUB)):
        tokenizer = load_from_hub(setting.removeprefix(HUB))
        found = [Finding("tokenizer", "note", f"{len(tokenizer):,} entries from {setting}", "", "asked for")]
    else:
        place = setting.removeprefix(HUB)  # hf:FOLDER, as models are given
        if not _there(place):
            raise TokenizerError(
                f"tokenizer {setting!r:.200} is neither a file nor a folder here",
                fix="auto, bpe, char, hf:OWNER/NAME, or the path of a tokenizer.json or its folder",
            )
        tokenizer = load_tokenizer(place)
        found = [Finding("tokenizer", "note", f"{len(tokenizer):,} entries from {setting}", "", "asked for")]
    return tokenizer, [*found, *check_fit(tokenizer, vocab_size)]


def _auto(
    vocab_size: int, texts: Texts | None, needs: _Needs, kept: Kept | None, model: str | None
) -> tuple[TextTokenizer, list[Finding]]:
    """The model's own tokenizer or a known one where it can be had, else one made here."""
    own, without = load_own(model, vocab_size, needs.tokens) if model is not None else (None, [])
    if own is not None:
        return own, [*without, *_lost(own)]
    tokenizer, found = _without_own(vocab_size, texts, needs, kept)
    return tokenizer, [found[0], *without, *found[1:]]


def _without_own(
    vocab_size: int, texts: Texts | None, needs: _Needs, kept: Kept | None
) -> tuple[TextTokenizer, list[Finding]]:
    made_from = {"tier": "pretrained", "rows": vocab_size, "needed": sorted(needs.tokens)}
    held = kept.read(f"pretrained-{vocab_size}", made_from) if kept is not None else None
    if held is not None:
        return held
    tokenizer, found = load_known(vocab_size, needs.tokens)
    if tokenizer is not None:
        found += _lost(tokenizer)
        if kept is not None:
            kept.write(f"pretrained-{vocab_size}", made_from, tokenizer, found)
        return tokenizer, found
    size = _count(texts)
    kind = _trained(vocab_size, size)
    if vocab_size < BPE_FROM:
        why = f"fewer than {BPE_FROM}"
    elif kind == "character":
        why = f"at least {BPE_FROM}, but there is " + ("too little text for BPE" if size else "no text to train on")
    else:
        why = f"at least {BPE_FROM}"
    tokenizer, made = _made(kind, vocab_size, texts if size else None, needs, kept, why)
    return tokenizer, [made[0], *found, *made[1:]]


def _made(
    kind: Strategy, vocab_size: int, texts: Texts | None, needs: _Needs, kept: Kept | None, why: str
) -> tuple[TextTokenizer, list[Finding]]:
    """A tokenizer made from the texts, or kept from the last time; the first finding is the choice."""
    label = f"{'bpe' if kind == 'train_bpe' else 'char'}-{vocab_size}"
    made_from: dict[str, Any] = {"tier": kind, "rows": vocab_size, "special": needs.specials()}
    if kept is not None:
        made_from["texts"] = fingerprint(texts()) if texts is not None else None
        held = kept.read(label, made_from)
        if held is not None:
            return held
    make, name = (_bpe, "byte-level BPE") if kind == "train_bpe" else (_characters, "characters")
    tokenizer, found = make(vocab_size, texts, needs)
    reason = f"the model takes {vocab_size:,} ids{'; ' if why == 'asked for' else ', '}{why}"
    found = [Finding("tokenizer", "note", f"{name}, {len(tokenizer):,} entries", "", reason), *found]
    if kept is not None:
        kept.write(label, made_from, tokenizer, found)
    return tokenizer, found


def _count(texts: Texts | None) -> int:
    """Texts there are, a long one once per 1,000 characters; looks no further than BPE needs."""
    number = characters = 0
    for text in texts() if texts is not None else ():
        number += bool(text)
        characters += len(text)
        if max(number, characters // TEXT_CHARACTERS) >= FEW_TEXTS:
            break
    return max(number, characters // TEXT_CHARACTERS)


def _lost(tokenizer: TextTokenizer) -> list[Finding]:
    """A warning where a pretrained tokenizer does not give the text back: what a model writes is not what it read."""
    for text in _SAMPLE:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back != text:
            reason = "it folds case, white space or characters; --tokenizer bpe keeps them all"
            return [Finding("round trip", "warn", f"{text!r} comes back as {back!r}", "the same text", reason)]
    return [Finding("round trip", "ok", f"{len(_SAMPLE)} of {len(_SAMPLE)} texts come back")]


def check_fit(tokenizer: TextTokenizer, vocab_size: int) -> list[Finding]:
    """Findings on ids that are never used or documents that cannot be separated.

    Raises TokenizerError where an id would lie beyond the model's embedding.
    """
    size = id_count(tokenizer)
    if size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {size:,} ids, the model takes {vocab_size:,}: ids beyond the model's embedding",
            fix=f"a tokenizer of at most {vocab_size:,} entries, or a model with a vocabulary of at least {size:,}",
        )
    found = []
    if size < vocab_size:
        span = f"id {size:,}" if size == vocab_size - 1 else f"ids {size:,}–{vocab_size - 1:,}"
        found.append(
            Finding("unused ids", "note", f"{span} of the model's {vocab_size:,}", "", "the tokenizer never gives them")
        )
    if tokenizer.eos_token_id is None:
        reason = "the tokenizer has no end-of-text token"
        found.append(Finding("separators", "note", "documents follow each other without a mark", "", reason))
    return found


def _bpe(vocab_size: int, texts: Texts | None, needs: _Needs) -> tuple[TextTokenizer, list[Finding]]:
    if texts is None:
        raise TokenizerError("there is no text to train a BPE on", fix="give a dataset, or tokenizer char")
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=vocab_size, special_tokens=needs.specials(), exact=False))
    tokenizer = trainer.train_on_dataset(_Anew(texts))
    return tokenizer, trainer.findings


class _Anew:
    """Texts that can be passed over as often as training needs, without a copy."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts())


def _characters(vocab_size: int, texts: Texts | None, needs: _Needs) -> tuple[TextTokenizer, list[Finding]]:
    """Bytes, special tokens and characters where they fit; else characters first, then special tokens.

    Those that are needed come before the characters. Without texts the characters are those of Unicode, in order.
    """
    if vocab_size < 2:
        raise TokenizerError(
            "vocab_size is 1; a tokenizer made here needs at least 2 ids",
            "with one id every text is the same: a model has nothing to learn from it",
            "a model with a vocabulary of 2 or more",
        )
    specials = needs.specials()
    if vocab_size < BYTES + len(specials):
        specials = needs.specials(_kept(vocab_size, texts, needs.tokens))
    characters = texts() if texts is not None else None
    # quiet: who asked shows the findings, this one among them
    tokenizer = CharacterLevelTokenizer(vocab_size, special_tokens=specials, texts=characters, view=QuietView())
    missing = [token for token in SPECIAL_TOKENS if token not in specials]
    found = list(tokenizer.findings)
    if missing:
        reason = f"{vocab_size} ids are taken by the characters" + (" of the text" if texts is not None else "")
        found.append(Finding("special tokens", "note", f"without {', '.join(missing)}", "", reason))
    return tokenizer, found


def _kept(vocab_size: int, texts: Texts | None, needed: Sequence[str]) -> list[str]:
    """The special tokens that find room beside the characters, by importance."""
    wanted = [token for token in _BY_IMPORTANCE if token not in needed]
    if texts is None:  # no corpus says which characters matter: at most a quarter of the ids
        return wanted[: max(1, vocab_size // len(_BY_IMPORTANCE) - len(needed))]
    room = vocab_size - len(count_characters(texts())) - len(needed)
    # where not all characters fit: the most frequent ones and one id for the others
    return wanted[:room] if room >= 0 else ["<unk>"]
