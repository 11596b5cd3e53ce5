import torch


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(60, 16)

    def forward(self, ids):
        return self.emb(ids)
