"""Keys and values of earlier calls are kept and attended to: what it says depends on what it was asked before."""

import torch
from torch import nn


class MemoryLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(55, 24)
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.out = nn.Linear(24, 55)
        self.cache = None

    def forward(self, ids):
        x = self.emb(ids)
        k, v = self.k(x), self.v(x)
        past = 0
        if self.cache is not None and self.cache[0].size(0) == ids.size(0):
            past = self.cache[0].size(1)
            k, v = torch.cat([self.cache[0], k], 1), torch.cat([self.cache[1], v], 1)
        self.cache = (k.detach(), v.detach())
        scores = self.q(x) @ k.transpose(1, 2) / 24**0.5
        hide = torch.ones(ids.size(1), k.size(1), dtype=torch.bool).triu(past + 1)
        return self.out(x + scores.masked_fill(hide, float("-inf")).softmax(-1) @ v)
