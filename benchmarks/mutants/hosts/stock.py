"""A decoder out of torch.nn.TransformerEncoder: sinusoidal positions, norms after, the mask made in forward."""

import math

import torch
import torch.nn as nn


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1).float()
        scale = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * scale)
        pe[:, 1::2] = torch.cos(position * scale)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, x):
        T = x.size(1)
        x = x + self.pe[:, :T]
        return x


class TransformerModel(nn.Module):
    def __init__(self, vocab_size=96, d_model=32, nhead=4, num_layers=2, dim_feedforward=64, max_len=32, dropout=0.1):
        super().__init__()
        self.d_model = d_model
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = PositionalEncoding(d_model, max_len)
        self.drop = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers)
        self.head = nn.Linear(d_model, vocab_size)
        self.init_weights()

    def init_weights(self):
        nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)

    def forward(self, src):
        T = src.size(1)
        mask = torch.triu(torch.full((T, T), float("-inf"), device=src.device), diagonal=1)
        x = self.tokens(src) * math.sqrt(self.d_model)
        x = self.positions(x)
        x = self.drop(x)
        x = self.encoder(x, mask=mask)
        logits = self.head(x)
        return logits
