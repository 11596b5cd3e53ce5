"""Log-probabilities instead of logits."""

import torch
from torch import nn


class LogSoftmaxLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(75, 24)
        self.pos = nn.Embedding(64, 24)
        self.block = nn.TransformerEncoderLayer(24, 4, 48, 0.1, batch_first=True)
        self.generator = nn.Sequential(nn.Linear(24, 75), nn.LogSoftmax(dim=-1))

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos(torch.arange(tokens.size(1), device=tokens.device))
        m = torch.triu(x.new_full((x.size(1), x.size(1)), float("-inf")), diagonal=1)
        return self.generator(self.block(x, m))
