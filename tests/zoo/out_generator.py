"""forward gives hidden states; the caller applies model.generator (with log-softmax)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Generator(nn.Module):
    def __init__(self, d_model, vocab):
        super().__init__()
        self.proj = nn.Linear(d_model, vocab)

    def forward(self, x):
        return F.log_softmax(self.proj(x), dim=-1)


class AnnotatedDecoder(nn.Module):
    def __init__(self, vocab=61, d_model=32):
        super().__init__()
        self.embed = nn.Embedding(vocab, d_model)
        self.pe = nn.Embedding(64, d_model)
        self.self_attn = nn.MultiheadAttention(d_model, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(d_model)
        self.generator = Generator(d_model, vocab)

    def forward(self, x):
        t = x.size(1)
        h = self.embed(x) + self.pe(torch.arange(t, device=x.device))
        keep_out = torch.ones(t, t, device=x.device, dtype=torch.bool).triu(1)
        return self.norm(h + self.self_attn(h, h, h, attn_mask=keep_out)[0])
