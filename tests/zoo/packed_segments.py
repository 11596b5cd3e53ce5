"""Several documents packed in one row: segment ids are required, a token sees only its own document's past."""

import torch
from torch import nn


class PackedDecoder(nn.Module):
    def __init__(self, vocab=79, dim=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab, dim)
        self.where = nn.Embedding(64, dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab)

    def forward(self, input_ids, segment_ids):
        B, T = input_ids.shape
        x = self.embed(input_ids) + self.where(torch.arange(T, device=input_ids.device))
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        allowed = (same & torch.ones(T, T, dtype=torch.bool, device=x.device).tril())[:, None]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.head(self.norm(x + self.out(y.transpose(1, 2).reshape(B, T, -1))))
