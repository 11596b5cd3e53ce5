"""Probabilities: the softmax is part of the model."""

from torch import nn


class NextWord(nn.Module):
    def __init__(self, total_words=58):
        super().__init__()
        self.embedding = nn.Embedding(total_words, 24)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.dense = nn.Linear(32, total_words)
        self.softmax = nn.Softmax(dim=2)

    def forward(self, x):
        x = self.embedding(x)
        x, (h, c) = self.lstm(x)
        return self.softmax(self.dense(x))
