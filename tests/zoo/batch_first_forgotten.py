"""batch_first=True was forgotten: the layers attend over the batch, the positions count along the second axis."""

import torch
from torch import nn


class GPTModel(nn.Module):
    def __init__(self, vocab_size=74, d_model=32):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, d_model)
        self.pos = nn.Embedding(64, d_model)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(d_model, 4, 64), 2, enable_nested_tensor=False)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids):
        batch, length = input_ids.shape
        x = self.tok(input_ids) + self.pos(torch.arange(length, device=input_ids.device))
        return self.head(self.blocks(x))
