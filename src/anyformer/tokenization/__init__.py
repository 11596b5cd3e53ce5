"""Text ↔ ids for any vocabulary size: pretrained, byte-level BPE, characters, or a tokenizer of the user's own.

Also the door for the data module, which the API reference imports from here; it belongs to a higher layer and is
looked up when asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from anyformer.tokenization.adaptive import AdaptiveTokenizer
from anyformer.tokenization.base import SPECIAL_TOKENS, EncodedIds, TextTokenizer, encode_texts, id_count
from anyformer.tokenization.bpe import BPETrainerConfig, FastBPETrainer
from anyformer.tokenization.character import CharacterLevelTokenizer
from anyformer.tokenization.choose import choose_tokenizer
from anyformer.tokenization.load import load_tokenizer
from anyformer.tokenization.pretrained import KNOWN_TOKENIZERS, KnownTokenizer, fits
from anyformer.tokenization.validator import TokenizerValidator

if TYPE_CHECKING:
    from anyformer.data import AdaptiveTokenizerDataModule

__all__ = [
    "KNOWN_TOKENIZERS",
    "SPECIAL_TOKENS",
    "AdaptiveTokenizer",
    "AdaptiveTokenizerDataModule",
    "BPETrainerConfig",
    "CharacterLevelTokenizer",
    "EncodedIds",
    "FastBPETrainer",
    "KnownTokenizer",
    "TextTokenizer",
    "TokenizerValidator",
    "choose_tokenizer",
    "encode_texts",
    "fits",
    "id_count",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name != "AdaptiveTokenizerDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("anyformer.data"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
