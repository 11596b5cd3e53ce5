"""A transformer over a time series: float features (B, T, 8), no token ids."""

import torch
from torch import nn


class TimeSeriesTransformer(nn.Module):
    def __init__(self, n_features=8, d_model=32):
        super().__init__()
        self.input_projection = nn.Linear(n_features, d_model)
        self.encoder = nn.TransformerEncoderLayer(d_model, 4, 64, batch_first=True)
        self.output = nn.Linear(d_model, n_features)

    def forward(self, x):
        return self.output(self.encoder(self.input_projection(x)))
