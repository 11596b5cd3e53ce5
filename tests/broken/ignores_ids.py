import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.pos = nn.Embedding(64, 16)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        x = self.emb(ids)
        x = self.pos(torch.arange(ids.shape[1])).expand(ids.shape[0], -1, -1)
        return self.head(x)
