"""An encoder that says so in its name: nothing is masked, every position sees every other."""

import torch
from torch import nn


class TransformerEncoderLM(nn.Module):
    def __init__(self, vocab_size=88, d_model=32, nhead=4, max_len=64):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.pos = nn.Parameter(torch.randn(max_len, d_model) * 0.1)
        self.encoder_layer = nn.TransformerEncoderLayer(d_model, nhead, 64, dropout=0.1, batch_first=True)
        self.mlm = nn.Linear(d_model, vocab_size)

    def forward(self, x):
        return self.mlm(self.encoder_layer(self.embedding(x) + self.pos[: x.size(1)]))
