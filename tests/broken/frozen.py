import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 60)
        for p in self.parameters():
            p.requires_grad = False

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids))[0])
