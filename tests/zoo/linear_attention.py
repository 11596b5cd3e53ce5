"""Causal by cumulative sums: linear attention."""

import torch
import torch.nn.functional as F
from torch import nn


class LinearAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        state = torch.einsum("btd,bte->btde", k, v).cumsum(dim=1)
        norm = k.cumsum(dim=1)
        return torch.einsum("btd,btde->bte", q, state) / (q * norm).sum(-1, keepdim=True)


class LinearTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        d = 16
        self.embed = nn.Embedding(59, d)
        self.attn = LinearAttention(d)
        self.norm = nn.LayerNorm(d)
        self.ff = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.unembed = nn.Linear(d, 59)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x + self.attn(self.norm(x))
        return self.unembed(x + self.ff(x))
