"""Causal by itself; a further mask (T, T) may be given and is not needed."""

import torch
from torch import nn


class OptionalMaskDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(53, 24)
        self.pos = nn.Embedding(64, 24)
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.out = nn.Linear(24, 53)

    def forward(self, tokens, mask=None):
        T = tokens.size(1)
        x = self.emb(tokens) + self.pos.weight[:T]
        scores = self.q(x) @ self.k(x).mT / 24**0.5
        scores = scores.masked_fill(torch.ones(T, T, device=x.device).triu(1).bool(), float("-inf"))
        if mask is not None:
            scores = scores + mask
        return self.out(x + scores.softmax(-1) @ self.v(x))
