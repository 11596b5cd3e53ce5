"""forward gives the loss; the logits are left on the module as self.logits. The caller shifts the targets."""

import torch
from torch import nn
from torch.nn import functional as F


class SelfScoring(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = None
        self.emb = nn.Embedding(56, 16)
        self.cell = nn.LSTM(16, 32, batch_first=True)
        self.out = nn.Linear(32, 56)

    def forward(self, ids, targets):
        self.logits = self.out(self.cell(self.emb(ids))[0])
        return F.cross_entropy(self.logits.flatten(0, 1), targets.flatten())
