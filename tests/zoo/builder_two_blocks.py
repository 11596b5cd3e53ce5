"""A builder export with two blocks, pre-norm, and a head that the forward calls output_0."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(58, 24)
        self.embedding_0_pos = nn.Embedding(96, 24)
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(24)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=24, num_heads=3, dropout=0.0, batch_first=True)
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(24)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        # layernorm: layernorm_2
        self.layernorm_2 = nn.LayerNorm(24)
        # output: output_0
        self.output_0 = nn.Linear(24, 58)

    def forward(self, input_0_tokens, residual_0_output, residual_1_output):
        # embedding: embedding_0
        positions = torch.arange(input_0_tokens.size(1), device=input_0_tokens.device)
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        # layernorm: layernorm_0
        layernorm_0_output = self.layernorm_0(embedding_0_output)
        # mhsa: mhsa_0
        mhsa_0_output, _ = self.mhsa_0(layernorm_0_output, layernorm_0_output, layernorm_0_output)
        # residual: residual_0
        # layernorm: layernorm_1
        layernorm_1_output = self.layernorm_1(residual_0_output)
        # ffn: ffn_0
        ffn_0_output = self.ffn_0(layernorm_1_output)
        # residual: residual_1
        # layernorm: layernorm_2
        layernorm_2_output = self.layernorm_2(residual_1_output)
        # output: output_0
        output_0_logits = self.output_0(layernorm_2_output)
        return output_0_logits
