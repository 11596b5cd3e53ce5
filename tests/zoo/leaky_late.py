"""Causal up to nine tokens; from position 9 on the attention is not masked any more."""

import torch
from torch import nn


class WindowedDecoder(nn.Module):
    def __init__(self, vocab=65, d=32):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.pos = nn.Embedding(64, d)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.head = nn.Linear(d, vocab)
        window = torch.ones(64, 64).triu(1).bool()
        window[9:] = False
        self.register_buffer("window", window)

    def forward(self, input_ids):
        T = input_ids.shape[1]
        x = self.emb(input_ids) + self.pos(torch.arange(T, device=input_ids.device))
        return self.head(x + self.attn(x, x, x, attn_mask=self.window[:T, :T], need_weights=False)[0])
