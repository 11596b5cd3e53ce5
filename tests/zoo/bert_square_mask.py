"""A BERT whose required mask hides scores (B, T, T): a causal one fits as well, and is not meant."""

import torch
from torch import nn


class BERT(nn.Module):
    def __init__(self, vocab_size=57, dim=32):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, dim), nn.Embedding(64, dim)
        self.qkv, self.mix = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.token_prediction, self.is_next = nn.Linear(dim, vocab_size), nn.Linear(dim, 2)

    def forward(self, input_tensor: torch.Tensor, attention_mask: torch.Tensor):
        h = self.token(input_tensor) + self.position(torch.arange(input_tensor.size(1), device=input_tensor.device))
        q, k, v = self.qkv(h).chunk(3, -1)
        scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(attention_mask, -1e9)
        h = h + self.mix(scores.softmax(-1) @ v)
        return self.token_prediction(h), self.is_next(h[:, 0])
