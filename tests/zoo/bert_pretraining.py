"""BERT for pre-training: (scores of the masked tokens, scores of "is the next sentence")."""

import torch
from torch import nn


class BertModel(nn.Module):
    def __init__(self, vocab_size, dim):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, dim)
        self.pos = nn.Embedding(64, dim)
        self.norm = nn.LayerNorm(dim)
        self.layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.1, batch_first=True, activation="gelu")
        self.pooler = nn.Linear(dim, dim)

    def forward(self, x):
        h = self.layer(self.norm(self.tok(x) + self.pos(torch.arange(x.size(1), device=x.device))))
        return h, torch.tanh(self.pooler(h[:, 0]))


class BertForPreTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = BertModel(93, 32)
        self.mask_lm = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 93))
        self.next_sentence = nn.Linear(32, 2)

    def forward(self, x):
        sequence_output, pooled_output = self.bert(x)
        return self.mask_lm(sequence_output), self.next_sentence(pooled_output)
