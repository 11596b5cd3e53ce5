import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 1_000_000)
        self.mix = nn.Linear(1_000_000, 1_000_000)
        self.head = nn.Linear(1_000_000, 60)

    def forward(self, ids):
        return self.head(self.mix(self.emb(ids)))
