import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16).cuda()
        self.head = nn.Linear(16, 60).cuda()

    def forward(self, ids):
        return self.head(self.emb(ids))
