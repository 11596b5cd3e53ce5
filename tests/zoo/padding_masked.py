"""An encoder with src_key_padding_mask (B, T), True = padding."""

import torch
from torch import nn


class TextEncoder(nn.Module):
    def __init__(self, ntoken=63, d=32):
        super().__init__()
        self.src_emb = nn.Embedding(ntoken, d)
        self.pos_emb = nn.Embedding(64, d)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 4, 64, dropout=0.1, batch_first=True), num_layers=1, enable_nested_tensor=False
        )
        self.mlm_head = nn.Linear(d, ntoken)

    def forward(self, src, src_key_padding_mask=None):
        x = self.src_emb(src) + self.pos_emb(torch.arange(src.size(1), device=src.device)).unsqueeze(0)
        return self.mlm_head(self.encoder(x, src_key_padding_mask=src_key_padding_mask))
