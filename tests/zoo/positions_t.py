"""Positions (T,) are required."""

import torch
from torch import nn


class PositionedLM(nn.Module):
    def __init__(self, vocab_size=67, d_model=32, max_len=90):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, d_model)
        self.pos = nn.Embedding(max_len, d_model)
        self.enc = nn.TransformerEncoderLayer(d_model, 4, 64, 0.0, batch_first=True)
        self.fc = nn.Linear(d_model, vocab_size)

    def forward(self, tokens, positions):
        if positions.dim() != 1 or len(positions) != tokens.size(1):
            raise ValueError("positions must be (T,)")
        x = self.tok(tokens) + self.pos(positions)[None]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        return self.fc(self.enc(x, mask, is_causal=True))
