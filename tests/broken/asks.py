import torch
from torch import nn

size = int(input("password: ")) if torch.rand(()) < 2 else 60


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(size, 16)
        self.head = nn.Linear(16, size)

    def forward(self, ids):
        return self.head(self.emb(ids))
