import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        # what torch.empty may hold: whatever was in memory before
        self.scale = nn.Parameter(torch.empty(16).fill_(float("nan")))
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids) * self.scale)[0])
