"""A subsequent mask (1, T, T) is the caller's, 1 = may be looked at, broadcast over heads by unsqueeze(1)."""

import torch
import torch.nn as nn


def attention(query, key, value, mask):
    scores = torch.matmul(query, key.transpose(-2, -1)) / query.size(-1) ** 0.5
    return torch.matmul(scores.masked_fill(mask.unsqueeze(1) == 0, -1e9).softmax(dim=-1), value)


class SubsequentLM(nn.Module):
    def __init__(self, vocab=51, d_model=32, h=2):
        super().__init__()
        self.h = h
        self.lut = nn.Embedding(vocab, d_model)
        self.pe = nn.Embedding(64, d_model)
        self.linears = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(4))
        self.norm = nn.LayerNorm(d_model)
        self.proj = nn.Linear(d_model, vocab)

    def forward(self, tgt, tgt_mask):
        assert tgt_mask.dim() == 3
        x = self.lut(tgt) + self.pe(torch.arange(tgt.size(-1)))
        n, t, d = x.shape
        q, k, v = (lin(x).view(n, t, self.h, -1).transpose(1, 2) for lin in self.linears[:3])
        x = x + self.linears[3](attention(q, k, v, tgt_mask).transpose(1, 2).reshape(n, t, d))
        return self.proj(self.norm(x))
