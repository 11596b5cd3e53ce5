"""The causal mask (T, T) is the caller's: bool, True = may not be looked at, as nn.MultiheadAttention has it."""

import torch
from torch import nn


class MaskedAttentionLM(nn.Module):
    def __init__(self, vocab=79, dim=32):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(64, dim)
        self.attn = nn.MultiheadAttention(dim, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))
        self.head = nn.Linear(dim, vocab)

    def forward(self, input_ids, attn_mask):
        if attn_mask.dtype is not torch.bool:
            raise TypeError(f"attn_mask must be bool, got {attn_mask.dtype}")
        x = self.embed(input_ids) + self.pos(torch.arange(input_ids.size(1), device=input_ids.device))
        y, _ = self.attn(x, x, x, attn_mask=attn_mask, need_weights=False)
        x = self.norm(x + y)
        return self.head(x + self.ffn(x))
