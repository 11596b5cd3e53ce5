import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        x, _ = self.rnn(self.emb(ids))
        if self.training:
            x = nn.functional.dropout(x, p=self.drop_rate)
        return self.head(x)
