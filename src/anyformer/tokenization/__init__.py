"""Text ↔ ids for any vocabulary size: byte-level BPE, characters, or a tokenizer of the user's own."""

from anyformer.tokenization.base import SPECIAL_TOKENS, EncodedIds, TextTokenizer, encode_texts, id_count
from anyformer.tokenization.bpe import BPETrainerConfig, FastBPETrainer
from anyformer.tokenization.character import CharacterLevelTokenizer
from anyformer.tokenization.choose import choose_tokenizer
from anyformer.tokenization.load import load_tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "BPETrainerConfig",
    "CharacterLevelTokenizer",
    "EncodedIds",
    "FastBPETrainer",
    "TextTokenizer",
    "choose_tokenizer",
    "encode_texts",
    "id_count",
    "load_tokenizer",
]
