"""A model as the visual builder exports it."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class CustomTransformer(nn.Module):
    """A feed-forward part in single nodes, a concatenation, an attention whose tuple is added as it is."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(29, 8)
        self.embedding_0_pos = nn.Embedding(64, 8)
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(8)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)
        # node: residual_0
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(8)
        # node: linear_0
        self.linear_0 = nn.Linear(8, 32)
        # node: gelu_0
        # node: linear_1
        self.linear_1 = nn.Linear(32, 8)
        # node: dropout_0
        self.dropout_0 = nn.Dropout(0.0)
        # node: residual_1
        # node: concat_0
        # node: linear_2
        self.linear_2 = nn.Linear(16, 29)

    def forward(self, input_0_tokens, gelu_0_output, residual_1_output):
        seq_len = input_0_tokens.shape[1]
        pos = torch.arange(seq_len, device=input_0_tokens.device)[None, :]
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(pos)
        layernorm_0_output = self.layernorm_0(embedding_0_output)
        residual_0_output = embedding_0_output + self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_0_output)
        linear_0_output = self.linear_0(layernorm_1_output)
        linear_1_output = self.linear_1(gelu_0_output)
        dropout_0_output = self.dropout_0(linear_1_output)
        concat_0_output = torch.cat([embedding_0_output, residual_1_output], dim=-1)
        linear_2_output = self.linear_2(concat_0_output)
        return linear_2_output
