"""A classifier that reads the first position's state."""

import torch
from torch import nn


class SentenceClassifier(nn.Module):
    def __init__(self, vocab_size=90, d_model=32, num_classes=4):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(64, d_model)
        self.encoder = nn.TransformerEncoderLayer(d_model, 4, 64, dropout=0.1, batch_first=True)
        self.classifier = nn.Linear(d_model, num_classes)

    def forward(self, input_ids):
        h = self.embedding(input_ids) + self.positions(torch.arange(input_ids.size(1), device=input_ids.device))
        return self.classifier(self.encoder(h)[:, 0])
