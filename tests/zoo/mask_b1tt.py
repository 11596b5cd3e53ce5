"""The causal mask is the caller's, (B, 1, T, T): 1 = may be looked at; filled with -1e9 elsewhere."""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)

    def split_heads(self, x):
        return x.view(x.size(0), x.size(1), self.num_heads, -1).transpose(1, 2)

    def forward(self, x, mask):
        Q, K, V = self.split_heads(self.W_q(x)), self.split_heads(self.W_k(x)), self.split_heads(self.W_v(x))
        scores = Q @ K.transpose(-2, -1) / K.size(-1) ** 0.5
        scores = scores.masked_fill(mask == 0, -1e9)
        out = torch.softmax(scores, dim=-1) @ V
        return self.W_o(out.transpose(1, 2).contiguous().view(x.size()))


class DecoderOnlyTransformer(nn.Module):
    def __init__(self, vocab_size=73, d_model=32, num_heads=4, max_seq_length=64):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positional = nn.Embedding(max_seq_length, d_model)
        self.attention = MultiHeadAttention(d_model, num_heads)
        self.norm = nn.LayerNorm(d_model)
        self.fc = nn.Linear(d_model, vocab_size)

    def forward(self, x, mask):
        assert mask.dim() == 4 and mask.size(0) == x.size(0), "mask must be (B, 1, T, T)"
        h = self.embedding(x) + self.positional(torch.arange(x.size(1), device=x.device))
        return self.fc(self.norm(h + self.attention(h, mask)))
