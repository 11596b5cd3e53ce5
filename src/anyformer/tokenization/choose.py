"""Which tokenizer a run uses, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.tokenization.base import SPECIAL_TOKENS, TextTokenizer, id_count
from anyformer.tokenization.bpe import BPETrainerConfig, FastBPETrainer
from anyformer.tokenization.character import BYTES, CharacterLevelTokenizer, count_characters
from anyformer.tokenization.load import load_tokenizer

# Below twice the bytes and special tokens, BPE has no room for merges to speak of.
BPE_FROM = 512
# Special tokens by what losing them costs: unknown characters, the ends of documents, padding, beginnings.
_BY_IMPORTANCE = ("<unk>", "</s>", "<pad>", "<s>")


def choose_tokenizer(
    setting: str, vocab_size: int, texts: Callable[[], Iterable[str]], needed: Sequence[str] = ()
) -> tuple[TextTokenizer, list[Finding]]:
    """The tokenizer for a model that takes ``vocab_size`` ids, and the findings that say why.

    setting: "auto" (bpe from 512 ids, else char), "bpe", "char", or the path of a file or folder.
    texts: gives the training texts anew at each call; not called for a path.
    needed: special tokens that a tokenizer trained here must have ("<mask>"), whatever else finds no room.
    Raises TokenizerError where it cannot be built or has more ids than the model.
    """
    if vocab_size < 1:
        raise TokenizerError(f"vocab_size is {vocab_size}; it must be positive")
    kind = setting
    if setting == "auto":
        kind = "bpe" if vocab_size >= BPE_FROM else "char"
    if kind == "bpe":
        tokenizer, found = _bpe(vocab_size, texts, needed)
        reason = f"the model takes {vocab_size:,} ids" + (
            f", at least {BPE_FROM}" if setting == "auto" else "; asked for"
        )
        choice = Finding("tokenizer", "note", f"byte-level BPE, {len(tokenizer):,} entries", "", reason)
    elif kind == "char":
        tokenizer, found = _characters(vocab_size, texts, needed)
        reason = f"the model takes {vocab_size:,} ids" + (
            f", fewer than {BPE_FROM}" if setting == "auto" else "; asked for"
        )
        choice = Finding("tokenizer", "note", f"characters, {len(tokenizer):,} entries", "", reason)
    else:
        if not Path(setting).expanduser().exists():
            raise TokenizerError(
                f"tokenizer {setting!r} is neither a file nor a folder here",
                fix="auto, bpe, char, or the path of a tokenizer.json or its folder",
            )
        tokenizer, found = load_tokenizer(setting), []
        choice = Finding("tokenizer", "note", f"{len(tokenizer):,} entries from {setting}", "", "asked for")
    return tokenizer, [choice, *found, *check_fit(tokenizer, vocab_size)]


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


def _bpe(
    vocab_size: int, texts: Callable[[], Iterable[str]], needed: Sequence[str]
) -> tuple[TextTokenizer, list[Finding]]:
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=vocab_size, special_tokens=_specials(needed)))
    tokenizer = trainer.train_on_dataset(texts())
    return tokenizer, trainer.findings


def _specials(needed: Sequence[str]) -> list[str]:
    return [*SPECIAL_TOKENS, *(token for token in needed if token not in SPECIAL_TOKENS)]


def _characters(
    vocab_size: int, texts: Callable[[], Iterable[str]], needed: Sequence[str]
) -> tuple[TextTokenizer, list[Finding]]:
    """Bytes, special tokens and characters where they fit; else characters first, then special tokens.

    Those that are needed come before the characters.
    """
    wanted = _specials(needed)
    if vocab_size >= BYTES + len(wanted):
        specials = wanted
    else:
        room = vocab_size - len(count_characters(texts())) - len(needed)
        # not all characters fit: the most frequent ones and one id for the others
        kept = [token for token in _BY_IMPORTANCE if token not in needed][:room] if room >= 0 else ["<unk>"]
        specials = [token for token in wanted if token in kept or token in needed]
    tokenizer = CharacterLevelTokenizer(vocab_size, special_tokens=specials, texts=texts())
    missing = [token for token in SPECIAL_TOKENS if token not in specials]
    found = list(tokenizer.findings)
    if missing:
        reason = f"{vocab_size} ids are taken by the characters of the text"
        found.append(Finding("special tokens", "note", f"without {', '.join(missing)}", "", reason))
    return tokenizer, found
