"""A model as the visual builder exports it."""

import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    """Two post-norm blocks; x is overwritten again and again, residuals have dropout, statements stand out of order."""

    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(num_embeddings=53, embedding_dim=12)
        self.embedding_0_pos = nn.Embedding(num_embeddings=20, embedding_dim=12)
        self.embedding_0_dropout = nn.Dropout(0.0)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(12, 3, batch_first=True)
        # node: residual_0
        self.residual_0_dropout = nn.Dropout(0.0)
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(12)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12))
        # node: residual_1
        self.residual_1_dropout = nn.Dropout(0.0)
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(12)
        # node: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(12, 3, batch_first=True)
        # node: residual_2
        # node: layernorm_2
        self.layernorm_2 = nn.LayerNorm(12)
        # node: ffn_1
        self.ffn_1 = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 12))
        # node: residual_3
        # node: layernorm_3
        self.layernorm_3 = nn.LayerNorm(12)
        # node: output_0
        self.output_0 = nn.Linear(12, 53)

    def forward(self, input_0_tokens, residual_0_output, residual_1_output, residual_2_output, residual_3_output):
        positions = torch.arange(0, input_0_tokens.size(1), device=input_0_tokens.device)
        x = self.embedding_0_token(input_0_tokens)
        x = x + self.embedding_0_pos(positions)
        x = self.embedding_0_dropout(x)
        x, _ = self.mhsa_0(x, x, x)
        x = self.layernorm_0(residual_0_output)
        x = self.ffn_0(x)
        x = self.layernorm_1(residual_1_output)
        x, weights = self.mhsa_1(query=x, key=x, value=x)
        ffn_1_output = self.ffn_1(layernorm_2_output)
        layernorm_2_output = self.layernorm_2(residual_2_output)
        x = self.layernorm_3(residual_3_output)
        output_0_logits = self.output_0(x)
        return output_0_logits
