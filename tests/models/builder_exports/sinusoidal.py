"""A model as the visual builder exports it."""

import math

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """Positions are a table of sines, a node of its own; dropouts are nodes, between each sublayer and its residual."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(43, 16)
        # node: posenc_0
        position = torch.arange(32).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, 16, 2) * (-math.log(10000.0) / 16))
        pe = torch.zeros(32, 16)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("posenc_0_pe", pe.unsqueeze(0))
        # node: dropout_0
        self.dropout_0 = nn.Dropout(0.0)
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(16)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(16, 4, batch_first=True)
        # node: dropout_1
        self.dropout_1 = nn.Dropout(0.0)
        # node: residual_0
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(16)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16))
        # node: dropout_2
        self.dropout_2 = nn.Dropout(0.0)
        # node: residual_1
        # node: layernorm_2
        self.layernorm_2 = nn.LayerNorm(16)
        # node: linear_0
        self.linear_0 = nn.Linear(16, 43)

    def forward(self, input_0_tokens, dropout_1_output, residual_0_output, dropout_2_output, residual_1_output):
        embedding_0_output = self.embedding_0_token(input_0_tokens) * math.sqrt(16)
        posenc_0_output = embedding_0_output + self.posenc_0_pe[:, : input_0_tokens.size(1)]
        dropout_0_output = self.dropout_0(posenc_0_output)
        layernorm_0_output = self.layernorm_0(dropout_0_output)
        mhsa_0_output, mhsa_0_weights = self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_1_output)
        layernorm_2_output = self.layernorm_2(residual_1_output)
        linear_0_logits = self.linear_0(layernorm_2_output)
        return linear_0_logits
