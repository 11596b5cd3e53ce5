from torch import nn


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.inner = Block(d)

    def forward(self, x):
        return self.inner(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)
        self.block = Block(16)
        self.head = nn.Linear(16, 60)

    def forward(self, ids):
        return self.head(self.block(self.emb(ids)))
