"""mask=None: without a mask this decoder sees the future; the caller must give the causal (T, T) one."""

from typing import Optional

import torch
from torch import Tensor, nn


class GPTDecoder(nn.Module):
    def __init__(self, n_tokens: int = 66, d_model: int = 32, nhead: int = 2, n_layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, d_model)
        self.position = nn.Embedding(64, d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, 64, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.to_vocab = nn.Linear(d_model, n_tokens)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        h = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.to_vocab(self.blocks(h, mask=mask))
