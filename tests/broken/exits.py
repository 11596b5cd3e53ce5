import sys

import torch
from torch import nn

if len(sys.argv) < 99:
    sys.exit("start me with torchrun and 98 arguments")
vocabulary = int(sys.argv[98])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, 16)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, ids):
        return self.head(self.emb(ids))
