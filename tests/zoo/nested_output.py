"""((logits, loss), cache): the logits lie two levels deep."""

import torch
from torch import nn


class CachedLM(nn.Module):
    def __init__(self, vocab_size=57, dim=24):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.pos = nn.Embedding(64, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.q = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, x, y=None):
        h = self.embed(x) + self.pos(torch.arange(x.size(1), device=x.device))
        k, v = self.kv(h).chunk(2, dim=-1)
        a = nn.functional.scaled_dot_product_attention(self.q(h), k, v, is_causal=True)
        logits = self.head(self.norm(h + a))
        loss = None if y is None else nn.functional.cross_entropy(logits.mT, y)
        return (logits, loss), (k, v)
