from torch import nn


class Model(nn.Module):
    def forward(self, ids):
        x = nn.Embedding(60, 16)(ids)
        return nn.Linear(7, 60)(x)
