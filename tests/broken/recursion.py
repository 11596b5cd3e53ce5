import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        return self.step(ids)

    def step(self, ids):
        return self.step(ids)
