"""The ids come as one flat sequence (T,), documents after one another; the logits are (T, V)."""

import torch
from torch import nn
import torch.nn.functional as F


class FlatGPT(nn.Module):
    def __init__(self, vocab_size=83, dim=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab_size, dim)
        self.pos = nn.Embedding(96, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, input_seq):
        assert input_seq.ndim == 1
        T = input_seq.size(0)
        x = self.embed(input_seq) + self.pos.weight[:T]
        q, k, v = self.qkv(F.rms_norm(x, (x.size(-1),))).view(T, 3, self.heads, -1).permute(1, 2, 0, 3)
        y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + y.transpose(0, 1).reshape(T, -1)
        return self.lm_head(F.rms_norm(x, (x.size(-1),)))
