"""forward(idx, targets) gives the loss alone, of flattened logits; the caller shifts the targets."""

import torch
from torch import nn


class LossModel(nn.Module):
    def __init__(self, V=44, D=24):
        super().__init__()
        self.V = V
        self.emb = nn.Embedding(V, D)
        self.pos = nn.Parameter(torch.zeros(64, D))
        self.layer = nn.TransformerEncoderLayer(D, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(D, V)
        self.criterion = nn.CrossEntropyLoss()
        nn.init.normal_(self.pos, std=0.3)

    def forward(self, idx, targets):
        T = idx.shape[1]
        h = self.layer(self.emb(idx) + self.pos[:T], torch.full((T, T), -torch.inf).triu(1))
        return self.criterion(self.head(h).reshape(-1, self.V), targets.reshape(-1))
