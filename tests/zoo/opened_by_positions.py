"""BERT whose head runs where it is told which positions to predict; without them there are hidden states alone."""

import torch
from torch import nn


class MaskLM(nn.Module):
    def __init__(self, vocab_size, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim), nn.Linear(dim, vocab_size))

    def forward(self, X, pred_positions):
        rows = torch.arange(X.shape[0]).repeat_interleave(pred_positions.shape[1])
        return self.mlp(X[rows, pred_positions.reshape(-1)].reshape(*pred_positions.shape, -1))


class BERTModel(nn.Module):
    def __init__(self, vocab_size=68, dim=32, max_len=64):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.segment_embedding = nn.Embedding(2, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len, dim) * 0.1)
        self.block = nn.TransformerEncoderLayer(dim, 2, 64, dropout=0.0, batch_first=True)
        self.mlm = MaskLM(vocab_size, dim)
        self.nsp = nn.Linear(dim, 2)

    def forward(self, tokens, segments, pred_positions=None):
        X = self.token_embedding(tokens) + self.segment_embedding(segments)
        X = self.block(X + self.pos_embedding[:, : X.shape[1]])
        mlm = self.mlm(X, pred_positions) if pred_positions is not None else None
        return X, mlm, self.nsp(X[:, 0])
