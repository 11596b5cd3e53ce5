"""A learned start is put before the first token inside: one more row of logits than tokens."""

import torch
from torch import nn


class StartGPT(nn.Module):
    def __init__(self, num_tokens=50, dim=32, seq_len=64):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, dim))
        self.token = nn.Embedding(num_tokens, dim)
        self.position = nn.Embedding(seq_len + 1, dim)
        self.block = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, num_tokens)

    def forward(self, x):
        h = torch.cat([self.start.expand(len(x), -1, -1), self.token(x)], 1)
        T = h.size(1)
        h = h + self.position(torch.arange(T, device=x.device))
        return self.head(self.block(h, torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)))
