"""A small model and a small text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = 40

TINY_FILE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, vocab_size=40):
        super().__init__()
        self.e = nn.Embedding(vocab_size, 16)
        self.d = nn.Dropout(0.2)
        self.h = nn.Linear(16, vocab_size)

    def forward(self, tokens):
        return self.h(self.d(self.e(tokens)))
"""
"""A model.py as a user has it, with dropout."""


class Small(nn.Module):
    """A causal model with dropout: an embedding, the running mean of the past, two layers."""

    def __init__(self, vocab_size: int = VOCABULARY, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.hidden = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        logits: Tensor = self.head(self.dropout(torch.tanh(self.hidden(torch.cat([x, past], -1)))))
        return logits


def small_text(sentences: int = 300) -> str:
    """Text of a few letters with some order in it, the same each time."""
    state, words = 1, ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far"]
    out = []
    for _ in range(sentences * 5):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(words[(state >> 16) % len(words)])
    return " ".join(out)
