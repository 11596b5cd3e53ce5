"""Positions (B, T) are required, one row for each sequence."""

import torch
import torch.nn as nn


class PackedLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(83, 32)
        self.places = nn.Embedding(128, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 48, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(32, 83)

    def forward(self, ids, pos_ids):
        assert ids.shape == pos_ids.shape
        T = ids.shape[1]
        causal = torch.triu(torch.ones(T, T, device=ids.device), diagonal=1).bool()
        return self.decoder(self.layers(self.words(ids) + self.places(pos_ids), mask=causal))
