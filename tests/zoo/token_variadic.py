"""forward(*args, **kwargs) that hands everything on to another module."""

import torch
from torch import nn


class _Core(nn.Module):
    def __init__(self, v, d):
        super().__init__()
        self.e = nn.Embedding(v, d)
        self.g = nn.GRU(d, d, batch_first=True)
        self.o = nn.Linear(d, v)

    def forward(self, token_sequence):
        e = self.e(token_sequence)
        return self.o(e + self.g(e)[0])


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = _Core(58, 24)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)
