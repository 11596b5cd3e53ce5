import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 20)
        self.attn = nn.MultiheadAttention(20, 6, batch_first=True)
        self.head = nn.Linear(20, 60)

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(self.attn(x, x, x)[0])
