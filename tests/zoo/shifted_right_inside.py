"""A start token is put in front inside: the logits at t are for token t itself."""

import torch
from torch import nn


class ImageStyleGPT(nn.Module):
    def __init__(self, vocab=56, dim=32):
        super().__init__()
        self.sos = nn.Parameter(torch.randn(dim) * 0.5)
        self.token_embeddings = nn.Embedding(vocab, dim)
        self.position_embeddings = nn.Embedding(100, dim)
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.ln = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, x):
        batch, length = x.shape
        h = self.token_embeddings(x)
        h = torch.cat([self.sos.expand(batch, 1, -1), h[:, :-1]], dim=1)
        h = h + self.position_embeddings(torch.arange(length, device=x.device))
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        return self.head(self.ln(h + self.attn(h, h, h, attn_mask=mask)[0]))
