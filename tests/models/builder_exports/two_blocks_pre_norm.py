"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """Two pre-norm blocks; the second attention is never called, its output is a parameter."""

    def __init__(self):
        super().__init__()
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(47, 16)
        self.embedding_0_pos = nn.Embedding(32, 16)
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(16)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(16, 2, batch_first=True)
        # residual: residual_0
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(16)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        # residual: residual_1
        # layernorm: layernorm_2
        self.layernorm_2 = nn.LayerNorm(16)
        # mhsa: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(16, 4, batch_first=True)
        # residual: residual_2
        # layernorm: layernorm_3
        self.layernorm_3 = nn.LayerNorm(16)
        # ffn: ffn_1
        self.ffn_1 = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        # residual: residual_3
        # layernorm: layernorm_4
        self.layernorm_4 = nn.LayerNorm(16)
        # output: output_0
        self.output_0_proj = nn.Linear(16, 47, bias=False)

    def forward(
        self,
        input_0_tokens: torch.Tensor,
        mhsa_0_output: torch.Tensor,
        mhsa_1_output: torch.Tensor,
        residual_0_output: torch.Tensor,
        residual_1_output: torch.Tensor,
        residual_2_output: torch.Tensor,
        residual_3_output: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        embedding_0_output = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        layernorm_0_output = self.layernorm_0(embedding_0_output)
        mhsa_0_output = self.mhsa_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_1_output)
        layernorm_2_output = self.layernorm_2(residual_1_output)
        layernorm_3_output = self.layernorm_3(residual_2_output)
        ffn_1_output = self.ffn_1(layernorm_3_output)
        layernorm_4_output = self.layernorm_4(residual_3_output)
        return output_0_logits
