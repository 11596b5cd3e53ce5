"""Its own loss smooths the labels: it is not the plain cross-entropy, so it differs from ours."""

import torch
from torch import nn


class SmoothedLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(72, 24)
        self.rnn = nn.GRU(24, 24, batch_first=True)
        self.out = nn.Linear(24, 72)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.2)

    def forward(self, ids, targets=None):
        logits = self.out(self.rnn(self.emb(ids))[0])
        if targets is None:
            return logits, None
        return logits, self.loss(logits.transpose(1, 2), targets)
