"""lengths (B,) are required: the rows are packed for a GRU."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PackedGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(64, 24, padding_idx=0)
        self.gru = nn.GRU(24, 40, batch_first=True)
        self.fc = nn.Linear(40, 64)

    def forward(self, text, lengths):
        packed = pack_padded_sequence(self.embedding(text), lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.gru(packed)
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=text.size(1))
        return self.fc(output)
