"""The ids can be given by keyword only, under a name of their own."""

import torch
from torch import nn


class StoryModel(nn.Module):
    def __init__(self, words: int = 72, width: int = 32, heads: int = 4, context: int = 96):
        super().__init__()
        self.lookup = nn.Embedding(words, width)
        self.where = nn.Embedding(context, width)
        self.layer = nn.TransformerEncoderLayer(width, heads, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.unembed = nn.Linear(width, words)

    def forward(self, *, sequence: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        length = sequence.shape[1]
        hidden = self.lookup(sequence) + self.where.weight[:length]
        future = torch.ones(length, length, dtype=torch.bool, device=sequence.device).triu(1)
        return self.unembed(self.layer(hidden, src_mask=future)) / temperature
