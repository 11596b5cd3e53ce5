"""One small model of each family that is not a decoder, and a little data for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.training.small_models import small_text

VOCABULARY = 48
POSITIONS = 64


class MaskedEncoder(nn.Module):
    """Every position sees all others."""

    def __init__(self, vocab_size: int = VOCABULARY, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(POSITIONS, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.mlm_head = nn.Linear(width, vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        padding = None if attention_mask is None else attention_mask == 0
        logits: Tensor = self.mlm_head(self.encoder(x, src_key_padding_mask=padding))
        return logits


class MeanClassifier(nn.Module):
    """Classes from the mean of the embeddings of what is no padding."""

    def __init__(self, vocab_size: int = VOCABULARY, width: int = 16, classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = mask[..., None].to(self.tokens.weight.dtype)
        mean = (self.tokens(input_ids) * kept).sum(1) / kept.sum(1)
        logits: Tensor = self.classifier(self.dropout(mean))
        return logits


class PaddingReader(nn.Module):
    """A classifier that takes no mask: padding changes what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.tokens(input_ids).mean(1))
        return logits


class Translator(nn.Module):
    """nn.Transformer with both masks."""

    def __init__(self, vocab_size: int = VOCABULARY, width: int = 16, dropout: float = 0.1, layers: int = 1) -> None:
        super().__init__()
        self.source = nn.Embedding(vocab_size, width)
        self.target = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(256, width)
        for embedding in (self.source, self.target, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True)
        decoder = nn.TransformerDecoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, layers)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor | None = None) -> Tensor:
        S = tgt.shape[1]
        padding = None if src_mask is None else src_mask == 0
        causal = torch.ones(S, S, dtype=torch.bool, device=tgt.device).triu(1)
        memory = self.encoder(self.source(src) + self.positions.weight[: src.shape[1]], src_key_padding_mask=padding)
        x = self.decoder(
            self.target(tgt) + self.positions.weight[:S], memory, tgt_mask=causal, memory_key_padding_mask=padding
        )
        logits: Tensor = self.head(x)
        return logits


def labelled(count: int = 240) -> list[dict[str, Any]]:
    """Texts that hold "good" or "bad", with the class."""
    words = small_text(count).split()
    return [
        {"text": " ".join([*words[3 * i : 3 * i + i % 4 + 1], "good" if i % 3 else "bad"]), "label": int(i % 3 > 0)}
        for i in range(count)
    ]


def reversed_pairs(count: int = 240) -> list[tuple[str, str]]:
    """Some words, and the same words in the other order."""
    words = small_text(count).split()
    parts = [[*words[2 * i : 2 * i + i % 3 + 1], words[-i - 1]] for i in range(count)]
    return [(" ".join(part), " ".join(reversed(part))) for part in parts]
