import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.pos = nn.Embedding(64, 16)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        positions = torch.arange(ids.size(1)).cuda()
        return self.head(self.emb(ids) + self.pos(positions))
