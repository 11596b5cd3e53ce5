"""The causal mask (T, T) is the caller's: float, added to the scores."""

import math

import torch
from torch import nn


class AdditiveMaskLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(62, 16)
        self.pos = nn.Parameter(0.1 * torch.randn(72, 16))
        self.wq = nn.Linear(16, 16)
        self.wk = nn.Linear(16, 16)
        self.wv = nn.Linear(16, 16)
        self.ff = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 62)

    def forward(self, src, src_mask):
        x = self.emb(src) + self.pos[: src.shape[1]]
        scores = self.wq(x) @ self.wk(x).mT / math.sqrt(16)
        x = x + torch.softmax(scores + src_mask, dim=-1) @ self.wv(x)
        return self.head(x + self.ff(x))
