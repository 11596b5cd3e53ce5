"""Encoder and decoder in one forward(src, tgt); the decoder's causal mask is made inside."""

import torch
from torch import nn


class Seq2SeqTransformer(nn.Module):
    def __init__(self, src_vocab=70, tgt_vocab=58, d_model=32):
        super().__init__()
        self.src_embedding = nn.Embedding(src_vocab, d_model)
        self.tgt_embedding = nn.Embedding(tgt_vocab, d_model)
        self.src_position = nn.Embedding(64, d_model)
        self.tgt_position = nn.Embedding(64, d_model)
        self.transformer = nn.Transformer(d_model, 4, 1, 1, 64, dropout=0.1, batch_first=True)
        self.fc_out = nn.Linear(d_model, tgt_vocab)

    def forward(self, src, tgt):
        s = self.src_embedding(src) + self.src_position(torch.arange(src.size(1), device=src.device))
        t = self.tgt_embedding(tgt) + self.tgt_position(torch.arange(tgt.size(1), device=tgt.device))
        future = torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool, device=tgt.device).triu(1)
        return self.fc_out(self.transformer(s, t, tgt_mask=future))
