"""Byte-level BPE, trained on texts that pass by once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.tokenization.base import SPECIAL_TOKENS, TextTokenizer, check_special_tokens, wrap_backend

BYTES = 256
_BATCH_CHARACTERS = 1 << 20  # texts handed to the library at a time; bounds the memory beside the word counts


@dataclass(frozen=True)
class BPETrainerConfig:
    """What a byte-level BPE is to be like."""

    vocab_size: int = 8192
    """Entries asked for, special tokens and the 256 bytes included; a short text gives fewer."""
    min_frequency: int = 2
    """A pair is merged only where it occurs at least this often."""
    special_tokens: list[str] = field(default_factory=lambda: list(SPECIAL_TOKENS))
    """Entries that are never split; they come first, in this order."""

    def __post_init__(self) -> None:
        check_special_tokens(self.special_tokens)
        smallest = BYTES + len(self.special_tokens)
        if self.vocab_size < smallest:
            raise TokenizerError(
                f"vocab_size is {self.vocab_size}; a byte-level BPE needs at least {smallest}",
                detail=f"256 bytes and {len(self.special_tokens)} special tokens",
                fix="use the character tokenizer for smaller vocabularies",
            )
        if self.min_frequency < 1:
            raise TokenizerError(f"min_frequency is {self.min_frequency}; it must be at least 1")


class FastBPETrainer:
    """Trains a byte-level BPE (GPT-2's splitting, no prefix space): every string survives encode and decode.

    After training, ``findings`` says what size was asked for and what the text gave.
    """

    def __init__(self, config: BPETrainerConfig | None = None) -> None:
        self.config = config or BPETrainerConfig()
        self.findings: list[Finding] = []

    def train_on_dataset(self, texts: Iterable[str], show_progress: bool = False) -> TextTokenizer:
        """The tokenizer learnt from ``texts``; the same texts give the same file, byte for byte.

        Memory grows with the distinct words, not with the text. show_progress: the library's bar on stderr.
        Raises TokenizerError where there is no text or an item is not a string.
        """
        config = self.config
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            show_progress=show_progress,
            special_tokens=list(config.special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        batches = _Batches(texts)
        backend.train_from_iterator(batches, trainer=trainer)
        if batches.characters == 0:
            raise TokenizerError("there is no text to train a tokenizer on", fix="give at least one non-empty text")
        tokenizer = wrap_backend(backend, config.special_tokens)
        self.findings = [_size_finding(config.vocab_size, len(tokenizer), config.min_frequency)]
        return tokenizer


class _Batches:
    """Texts in lists of about a million characters, counted as they pass."""

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise TokenizerError("texts is one string", fix="give a list of strings: [text]")
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[list[str]]:
        batch: list[str] = []
        size = 0
        for number, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise TokenizerError(
                    f"text {number:,} is {text!r:.60} ({type(text).__name__}); a tokenizer trains on strings"
                )
            batch.append(text)
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                self.characters += size
                yield batch
                batch, size = [], 0
        self.characters += size
        if batch:
            yield batch


def _size_finding(asked: int, got: int, min_frequency: int) -> Finding:
    if got == asked:
        return Finding("tokenizer size", "ok", f"{got:,} entries", f"{asked:,}")
    return Finding(
        "tokenizer size",
        "note",
        f"asked {asked:,}, the text gave {got:,}",
        f"{asked:,}",
        f"no further pair of tokens occurs {min_frequency} times or more",
    )
