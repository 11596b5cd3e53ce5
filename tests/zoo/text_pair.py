import torch
from torch import nn


class NLIModel(nn.Module):
    """Two texts in, how they relate out."""

    def __init__(self, vocab_size=90, d=24, num_classes=3):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d)
        self.rnn = nn.GRU(d, d, batch_first=True)
        self.out = nn.Linear(3 * d, num_classes)

    def encode(self, x):
        return self.rnn(self.embed(x))[0].mean(1)

    def forward(self, premise, hypothesis):
        u, v = self.encode(premise), self.encode(hypothesis)
        return self.out(torch.cat([u, v, (u - v).abs()], -1))
