"""An encoder that asks for BERT's extended mask: (B, 1, 1, T), 0 = keep, a large negative number = padding."""

import torch
from torch import nn


class BertSelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, extended):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + extended
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


class BertEncoderLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(68, 24)
        self.places = nn.Embedding(64, 24)
        self.attention = BertSelfAttention(24, 2)
        self.norm = nn.LayerNorm(24)
        self.predictions = nn.Linear(24, 68)

    def forward(self, input_ids, extended_attention_mask):
        B, T = input_ids.shape
        if extended_attention_mask.shape != (B, 1, 1, T) or not extended_attention_mask.is_floating_point():
            raise ValueError("extended_attention_mask must be float (B, 1, 1, T)")
        x = self.words(input_ids) + self.places(torch.arange(T, device=input_ids.device))
        return self.predictions(self.norm(x + self.attention(x, extended_attention_mask)))
