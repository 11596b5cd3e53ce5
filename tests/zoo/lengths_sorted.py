"""A classifier over packed rows, which pack_padded_sequence takes sorted by length alone, as it does by default."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class PackedClassifier(nn.Module):
    def __init__(self, vocab_size=66, num_classes=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 24)
        self.lstm = nn.LSTM(24, 20, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(40, num_classes)

    def forward(self, text, text_lengths):
        packed = pack_padded_sequence(self.embedding(text), text_lengths.cpu(), batch_first=True)
        _, (hidden, _) = self.lstm(packed)
        return self.fc(torch.cat([hidden[-2], hidden[-1]], 1))
