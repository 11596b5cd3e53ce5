"""An export of the visual builder: intermediates are parameters of forward, residuals and the mask are missing."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(71, 32)
        self.embedding_0_pos = nn.Embedding(64, 32)
        self.embedding_0_dropout = nn.Dropout(0.1)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=32, num_heads=4, dropout=0.1, batch_first=True)
        # residual: residual_0
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(32)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(
            nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.Dropout(0.1)
        )
        # residual: residual_1
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(32)
        # linear: linear_0
        self.linear_0 = nn.Linear(32, 71)

    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, residual_1_output):
        # embedding: embedding_0
        positions = torch.arange(0, input_0_tokens.size(1), device=input_0_tokens.device).unsqueeze(0)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        embedding_0_output = self.embedding_0_dropout(embedding_0_output)
        # mhsa: mhsa_0
        mhsa_0_output, _ = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)
        # residual: residual_0
        # layernorm: layernorm_0
        layernorm_0_output = self.layernorm_0(residual_0_output)
        # ffn: ffn_0
        ffn_0_output = self.ffn_0(layernorm_0_output)
        # residual: residual_1
        # layernorm: layernorm_1
        layernorm_1_output = self.layernorm_1(residual_1_output)
        # linear: linear_0
        linear_0_output = self.linear_0(layernorm_1_output)
        return linear_0_output
