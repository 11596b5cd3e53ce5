"""forward gives hidden states; the module has an lm_head that the caller applies."""

import torch
from torch import nn


class Backbone(nn.Module):
    def __init__(self, vocab_size: int = 80, hidden: int = 24):
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden)
        self.mixer = nn.GRU(hidden, hidden, num_layers=2, batch_first=True)
        self.ln = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, vocab_size, bias=False)

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        return self.ln(self.mixer(self.embeddings(input_ids))[0])
