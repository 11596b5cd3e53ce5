"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """A recurrent node before the attention, and another that forward never calls; the head is a linear node."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(37, 12)
        # node: gru_0
        self.gru_0 = nn.GRU(12, 12, batch_first=True)
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(12, 2, batch_first=True)
        # node: residual_0
        # node: lstm_0
        self.lstm_0 = nn.LSTM(12, 18)
        # node: dropout_0
        self.dropout_0 = nn.Dropout(0.0)
        # node: linear_0
        self.linear_0 = nn.Linear(18, 37)

    def forward(self, input_0_tokens, gru_0_output, residual_0_output, lstm_0_output, dropout_0_output):
        embedding_0_output = self.embedding_0_token(input_0_tokens)
        gru_0_output, gru_0_hidden = self.gru_0(embedding_0_output)
        layernorm_0_output = self.layernorm_0(gru_0_output)
        mhsa_0_output = self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)[0]
        linear_0_output = self.linear_0(dropout_0_output)
        return linear_0_output
