"""Byte-level BPE of exactly the size asked for, trained in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.tokenization.base import SPECIAL_TOKENS, TextTokenizer, check_special_tokens, whole_number, wrap_backend
from anyformer.tokenization.kept import Kept, fingerprint
from anyformer.tokenization.texts import LONGEST_WORD, Passes, Sample, TooManyWords, draw, training_texts
from anyformer.tokenization.training_progress import TrainingProgress, size_text

BYTES = 256
_LEAST_ROOM = 300_000  # a block of any text: 64 Ki characters of four bytes


@dataclass(frozen=True)
class BPETrainerConfig:
    """What a byte-level BPE is to be like."""

    vocab_size: int = 8192
    """Entries asked for, special tokens and the 256 bytes included."""
    min_frequency: int = 2
    """A pair is merged only where it occurs at least this often."""
    special_tokens: list[str] = field(default_factory=lambda: list(SPECIAL_TOKENS))
    """Entries that are never split; they come first, in this order."""
    exact: bool = True
    """An error where the text gives fewer entries than asked for; False takes the smaller tokenizer."""
    max_bytes: int | None = None
    """Bytes of text to learn from at most: of more, blocks of 64 Ki characters are drawn from all of it. None: all."""
    max_distinct_bytes: int = 7_000_000
    """Bytes of all distinct words together, each about 115 bytes of memory; of text with more, blocks are drawn."""
    seed: int = 0
    """Of the drawing of blocks."""

    def __post_init__(self) -> None:
        check_special_tokens(self.special_tokens)
        whole_number("vocab_size", self.vocab_size)
        whole_number("min_frequency", self.min_frequency)
        smallest = BYTES + len(self.special_tokens)
        if self.vocab_size < smallest:
            raise TokenizerError(
                f"vocab_size is {self.vocab_size}; a byte-level BPE needs at least {smallest}",
                detail=f"256 bytes and {len(self.special_tokens)} special tokens",
                fix="use the character tokenizer for smaller vocabularies",
            )
        if self.min_frequency < 1:
            raise TokenizerError(f"min_frequency is {self.min_frequency}; it must be at least 1")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise TokenizerError(
                f"max_bytes is {self.max_bytes}; it must be positive", fix="None takes all of the text"
            )
        if self.max_distinct_bytes < _LEAST_ROOM:
            raise TokenizerError(
                f"max_distinct_bytes is {self.max_distinct_bytes:,}; it must be at least {_LEAST_ROOM:,}"
            )


class FastBPETrainer:
    """Trains a byte-level BPE (GPT-2's splitting, no prefix space): every string survives encode and decode.

    After training, ``findings`` says what size was asked for and got, and of what part of the text it was learnt.
    """

    def __init__(self, config: BPETrainerConfig | None = None) -> None:
        self.config = config or BPETrainerConfig()
        self.findings: list[Finding] = []

    def train_on_dataset(
        self,
        texts: Any,
        show_progress: bool = False,
        vocab_size: int | None = None,
        special_tokens: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
    ) -> TextTokenizer:
        """The tokenizer learnt from ``texts``; the same texts give the same file, byte for byte.

        texts: strings, a Path or several (UTF-8 text), a Dataset or a dict with a text column. Memory grows with the
        distinct words up to ``config.max_distinct_bytes``, not with the text.
        show_progress: what is read and learnt, on stderr. vocab_size, special_tokens: in place of the config's.
        cache_dir: the tokenizer is kept there, and found again by the texts and the config.
        Raises TokenizerError where there is no text, an item is not a string, or the text cannot fill the size.
        """
        config = self.config
        if vocab_size is not None:
            config = replace(config, vocab_size=vocab_size)
        if special_tokens is not None:
            config = replace(config, special_tokens=check_special_tokens(special_tokens))
        merges = config.vocab_size - BYTES - len(config.special_tokens)
        with TrainingProgress(texts, merges, show_progress) as progress:
            passes = training_texts(progress.texts)
            if cache_dir is None:
                tokenizer, self.findings = _train(passes, config, progress)
                return tokenizer
            kept = Kept(Path(cache_dir).expanduser())
            label = f"bpe-{config.vocab_size}"
            made_from = {"trainer": asdict(config), "texts": fingerprint(progress.looking(passes()))}
            held = kept.read(label, made_from)
            if held is None:
                held = _train(passes, config, progress)
                kept.write(label, made_from, *held)
            tokenizer, self.findings = held
            return tokenizer


def _train(passes: Passes, config: BPETrainerConfig, progress: TrainingProgress) -> tuple[TextTokenizer, list[Finding]]:
    """Train on all of the text, or on the largest sample whose distinct words fit: each try on half of the last."""
    most, halved = config.max_bytes, False
    while True:
        drawn, whole = (None, 0) if most is None else draw(progress.looking(passes()), most, config.seed)
        sample = Sample(passes(), config.max_distinct_bytes, drawn, progress.read)
        try:
            backend = _learn(progress.reading(sample, None if drawn is None else most), config)
        except TooManyWords as full:
            most, halved = full.fed // 2, True
            continue
        if sample.taken == 0:
            raise TokenizerError("there is no text to train a tokenizer on", fix="give at least one non-empty text")
        progress.done(backend.get_vocab_size(), sample.taken)
        tokenizer = wrap_backend(backend, config.special_tokens)
        found = [_size_finding(config, len(tokenizer), sample.taken, sampled=drawn is not None)]
        if drawn is not None:
            found.append(_sample_finding(config, sample, whole, len(drawn), halved))
        if sample.cut_words:
            reason = "in training only; no entry is longer than that"
            found.append(Finding("long words", "note", f"learnt in pieces of {LONGEST_WORD} characters", "", reason))
        return tokenizer, found


def _learn(sample: Iterator[list[str]], config: BPETrainerConfig) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        show_progress=False,  # the library's bars show in terminals only, ours in notebooks and logs too
        special_tokens=list(config.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(sample, trainer=trainer)
    return backend


def _size_finding(config: BPETrainerConfig, got: int, taken: int, sampled: bool) -> Finding:
    """The size; TokenizerError where it is not the one asked for and has to be."""
    asked = config.vocab_size
    if got == asked:
        return Finding("tokenizer size", "ok", f"{got:,} entries", f"{asked:,}")
    base = BYTES + len(config.special_tokens)
    limit = f"no further pair of tokens occurs {config.min_frequency} times or more"
    if not config.exact:
        measured = f"asked {asked:,}, the text gave {got:,}"
        return Finding("tokenizer size", "note", measured, f"{asked:,}", limit)
    ways = ["more text" + (" (a larger max_bytes or max_distinct_bytes)" if sampled else ""), f"vocab_size={got}"]
    if config.min_frequency > 1:
        ways.append("min_frequency=1")
    raise TokenizerError(
        f"vocab_size is {asked:,}, but the text could give only {got:,} entries",
        detail=f"{size_text(taken)} of text gave {got - base:,} merges, {asked - base:,} were needed\n"
        f"min_frequency is {config.min_frequency}: {limit}",
        fix=f"{', or '.join(ways)}\nexact=False takes the smaller tokenizer",
    )


def _sample_finding(config: BPETrainerConfig, sample: Sample, whole: int, blocks: int, halved: bool) -> Finding:
    limit = f"max_distinct_bytes is {config.max_distinct_bytes:,}" if halved else f"max_bytes is {config.max_bytes:,}"
    reason = f"{limit}; {blocks:,} blocks of 64 Ki characters drawn at random, seed {config.seed}"
    return Finding("training text", "note", f"{size_text(sample.taken)} of {size_text(whole)}", "", reason)
