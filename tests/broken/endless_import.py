import torch
from torch import nn

vocabulary = 60
while vocabulary != 61:
    vocabulary += 2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids))[0])
