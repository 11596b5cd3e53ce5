"""Causal only where the caller says is_causal=True; the default sees everything."""

import torch
from torch import nn
from torch.nn import functional as F


class FlaggedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(57, 20)
        self.wpe = nn.Embedding(64, 20)
        self.c_attn = nn.Linear(20, 60)
        self.c_proj = nn.Linear(20, 20)
        self.ln = nn.LayerNorm(20)
        self.lm_head = nn.Linear(20, 57)

    def forward(self, input_ids, is_causal=False):
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.size(1), device=input_ids.device))
        q, k, v = (t.unflatten(-1, (2, 10)).transpose(1, 2) for t in self.c_attn(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.lm_head(self.ln(x + self.c_proj(y.transpose(1, 2).flatten(2))))
